//! Single steps: a packet in, and what must come of it.
