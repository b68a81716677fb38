// What a step is worth in plain steps when its records keep a share of the energy. Pure; any
// thread.
#pragma once

namespace scant::plan {

// kept in 0 to 1; 1 from 0.999 on, never rising when kept falls.
[[nodiscard]] double progress(double kept);

}  // namespace scant::plan
