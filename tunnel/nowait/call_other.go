//go:build !linux

package nowait

import "errors"

// Supported tells that they do not.
const Supported = false

// Read is not known on this system, where Raw returns nil.
func Read(uintptr, []byte) (int, error) { return 0, errors.ErrUnsupported }

// Peek is not known on this system, where Raw returns nil.
func Peek(uintptr, []byte) (int, error) { return 0, errors.ErrUnsupported }

// Write is not known on this system, where Raw returns nil.
func Write(uintptr, []byte) (int, error) { return 0, errors.ErrUnsupported }

// WriteMore is not known on this system, where Raw returns nil.
func WriteMore(uintptr, []byte) (int, error) { return 0, errors.ErrUnsupported }

// Readable is not known on this system, where Raw returns nil.
func Readable(uintptr) bool { return false }

// Writable is not known on this system, where Raw returns nil.
func Writable(uintptr) bool { return false }
