//go:build !linux

package main

import "os/exec"

// monotonicMicros is only asked for by systemd, which there is on Linux alone.
func monotonicMicros() int64 { return 0 }

// openFilesLimit is unknown here.
func openFilesLimit() uint64 { return 0 }

// noCoreDumps does nothing here.
func noCoreDumps() error { return nil }

// endWithParent can not be had here: children are ended by the parent's normal end only.
func endWithParent(*exec.Cmd) {}

// availableMemory is unknown here.
func availableMemory() int64 { return 0 }
