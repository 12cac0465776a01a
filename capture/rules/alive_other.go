//go:build !linux

package rules

type filter struct{}

func (*filter) set([]Served, bool) error { return errLinux }
