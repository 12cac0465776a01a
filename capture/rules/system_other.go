//go:build !linux

package rules

import (
	"context"
	"errors"
)

// errLinux is what comes of all this on other systems.
var errLinux = errors.New("flows are captured on Linux only; on this system programs are pointed at the gateway, with --socks, --http-proxy or --forward") // immutable

func namespace() (string, error) { return "", errLinux }

func identity() string { return "" }

func privileged() error { return errLinux }

func ipv6() bool { return true }

func (h Host) lock(context.Context) (unlock func(), err error) { return nil, errLinux }
