//! Vocabulary shared by both sides of the kernel boundary.
#![no_std]
