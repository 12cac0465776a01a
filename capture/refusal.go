package capture

import (
	"fmt"
)

// A Refusal is why a flow does not stand, in the terms that an app can be told. It names no hop and no
// rule. The zero Refusal is General.
type Refusal uint8

const (
	// General is any failure that has no name of its own here.
	General Refusal = iota
	// NotAllowed: policy forbids the destination.
	NotAllowed
	// NetworkUnreachable: there is no way to the destination's network, or to the next hop.
	NetworkUnreachable
	// HostUnreachable: the destination can not be reached.
	HostUnreachable
	// ConnectionRefused: the destination refused the connection.
	ConnectionRefused
	// TimedOut: the destination, or a hop before it, did not answer in time.
	TimedOut
	// NameNotFound: the destination's name could not be resolved.
	NameNotFound
	// Unavailable: this gateway takes no new flows now, because it drains or is at a limit.
	Unavailable
)

// String returns a short name in lower case for logs.
func (r Refusal) String() string {
	switch r {
	case General:
		return "general failure"
	case NotAllowed:
		return "not allowed"
	case NetworkUnreachable:
		return "network unreachable"
	case HostUnreachable:
		return "host unreachable"
	case ConnectionRefused:
		return "connection refused"
	case TimedOut:
		return "timed out"
	case NameNotFound:
		return "name not found"
	case Unavailable:
		return "unavailable"
	}
	return fmt.Sprintf("refusal %d", uint8(r))
}

// A Cause is the kind of a failed handshake. The values are few and none is chosen by a peer, so it may
// be the label of a metric.
type Cause string

const (
	// CauseClosed: the app hung up before it had asked for anything. Health checks and port scans do.
	CauseClosed Cause = "closed"
	// CauseTimeout: the handshake was not complete in time.
	CauseTimeout Cause = "timeout"
	// CauseNetwork: reading from or writing to the app failed.
	CauseNetwork Cause = "network"
	// CauseProtocol: what came is not the protocol that the way speaks.
	CauseProtocol Cause = "protocol"
	// CauseAuth: the app did not log in, or with a wrong name or password.
	CauseAuth Cause = "auth"
	// CauseCommand: the app asked for something other than a connection.
	CauseCommand Cause = "command"
	// CauseDestination: the app named a destination that can not be one.
	CauseDestination Cause = "destination"
)

// HandshakeError is a handshake that failed. Nothing of it has been logged. It quotes what the app sent
// in a printable form and cut to a few bytes, and never a password.
type HandshakeError struct {
	// Way is the name of the way, such as "socks5".
	Way string
	// From is the app's address.
	From string
	// Cause is the kind of failure.
	Cause Cause
	// Came says what the app did.
	Came string
	// Do says what to change so that it works, "" if there is nothing.
	Do string
	// Err is the error of the connection that caused this, nil if the app's bytes did.
	Err error
}

// Error says what came, from where, and what to do.
func (e *HandshakeError) Error() string {
	text := e.Way + " handshake with " + e.From + ": " + e.Came
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	if e.Do != "" {
		text += "; " + e.Do
	}
	return text
}

// Unwrap returns e.Err.
func (e *HandshakeError) Unwrap() error { return e.Err }

// FieldError is one field of a configuration that is wrong. Validate joins them.
type FieldError struct {
	// Field is the path of the field as in the configuration file, such as "users.alice".
	Field string
	// What is what is wrong, and what would be right.
	What string
}

// Error returns the field and what is wrong with it.
func (e *FieldError) Error() string { return e.Field + ": " + e.What }
