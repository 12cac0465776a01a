//go:build !linux

package tunnel

// spliced is not possible on this system.
func (d *direction) spliced() (src, dst error, ok bool) { return nil, nil, false }
