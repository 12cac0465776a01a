//go:build !linux

package rules

func setElements([]Served, bool) error { return errLinux }
