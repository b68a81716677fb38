"""Trains a small real model on slow links, with gloo and with scant, and shows both."""
