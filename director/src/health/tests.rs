//! Claims about health checks, against real servers on loopback.
