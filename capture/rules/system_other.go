//go:build !linux

package rules

import "errors"

// errLinux is what comes of all this on other systems.
var errLinux = errors.New("flows are captured on Linux only; on this system programs are pointed at the gateway, with --socks, --http-proxy or --forward") // immutable

func namespace() (string, error) { return "", errLinux }

func privileged() error { return errLinux }

func ipv6() bool { return true }

func (h Host) lock() (unlock func(), err error) { return nil, errLinux }
