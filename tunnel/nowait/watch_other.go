//go:build !linux

package nowait

import (
	"errors"
	"syscall"
)

// Watch is not known on this system.
type Watch struct{}

// Sleeper is told when its socket has something to tell.
type Sleeper interface{ Wake() }

// NewWatch fails on this system.
func NewWatch() (*Watch, error) { return nil, errors.ErrUnsupported }

// Close is never called.
func (w *Watch) Close() {}

// Add is never called.
func (w *Watch) Add(syscall.RawConn, Sleeper) (int, error) { return -1, errors.ErrUnsupported }

// Remove is never called.
func (w *Watch) Remove(int, Sleeper) {}
