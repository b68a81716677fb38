"""`scant serve`: OpenAI's protocol over HTTP in front of an engine (docs/serving.md).

A request: connection.py (bytes, heads) → app.py (routes, keys) → body.py, fields.py (what was
asked) → answers.py (requests to the engine, its tokens to text) → forms.py (text to JSON) → back.
"""
