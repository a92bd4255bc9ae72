package telemetry

// Version is zerospan's own; the linker sets it (-X) in released binaries.
var Version = "0.1.0-dev"
