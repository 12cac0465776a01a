package h2

import (
	"errors"
	"fmt"
)

// ErrCode is an HTTP/2 error code (RFC 9113, section 7).
type ErrCode uint32

// The error codes of RFC 9113, section 7.
const (
	NoError            ErrCode = 0x0
	ProtocolError      ErrCode = 0x1
	InternalError      ErrCode = 0x2
	FlowControlError   ErrCode = 0x3
	SettingsTimeout    ErrCode = 0x4
	StreamClosed       ErrCode = 0x5
	FrameSizeError     ErrCode = 0x6
	RefusedStream      ErrCode = 0x7
	Cancel             ErrCode = 0x8
	CompressionError   ErrCode = 0x9
	ConnectError       ErrCode = 0xa
	EnhanceYourCalm    ErrCode = 0xb
	InadequateSecurity ErrCode = 0xc
	HTTP11Required     ErrCode = 0xd
)

// String returns the name that RFC 9113 gives the code, or its number.
func (e ErrCode) String() string {
	switch e {
	case NoError:
		return "NO_ERROR"
	case ProtocolError:
		return "PROTOCOL_ERROR"
	case InternalError:
		return "INTERNAL_ERROR"
	case FlowControlError:
		return "FLOW_CONTROL_ERROR"
	case SettingsTimeout:
		return "SETTINGS_TIMEOUT"
	case StreamClosed:
		return "STREAM_CLOSED"
	case FrameSizeError:
		return "FRAME_SIZE_ERROR"
	case RefusedStream:
		return "REFUSED_STREAM"
	case Cancel:
		return "CANCEL"
	case CompressionError:
		return "COMPRESSION_ERROR"
	case ConnectError:
		return "CONNECT_ERROR"
	case EnhanceYourCalm:
		return "ENHANCE_YOUR_CALM"
	case InadequateSecurity:
		return "INADEQUATE_SECURITY"
	case HTTP11Required:
		return "HTTP_1_1_REQUIRED"
	}
	return fmt.Sprintf("error code %#x", uint32(e))
}

// Origin says who caused an error.
type Origin uint8

// The causes of an error: this process (a caller, a limit or a check of ours), the peer by what it
// sent, or the connection below.
const (
	Local Origin = iota
	Peer
	Network
)

// String returns "local", "peer" or "network".
func (o Origin) String() string {
	switch o {
	case Peer:
		return "peer"
	case Network:
		return "network"
	}
	return "local"
}

// StreamError ends one stream; the connection lives on (RFC 9113, section 5.4.2). Code is what was
// sent or received in RST_STREAM. By Peer with a Code of RefusedStream means that the peer has not
// processed the request, so it may be sent again (RFC 9113, section 8.7).
type StreamError struct {
	StreamID uint32
	Code     ErrCode
	By       Origin
	Reason   string // what happened, for an operator; may be empty
	Err      error  // cause, where there is one
}

// Error describes the stream, who ended it and why.
func (e *StreamError) Error() string {
	s := fmt.Sprintf("stream %d reset by %s: %s", e.StreamID, e.By, e.Code)
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *StreamError) Unwrap() error { return e.Err }

// ConnError ended a connection and every stream on it (RFC 9113, section 5.4.1). Code is what was sent
// or received in GOAWAY; with By Network there was no GOAWAY.
type ConnError struct {
	Code   ErrCode
	By     Origin
	Reason string
	Err    error
}

// Error describes who ended the connection and why.
func (e *ConnError) Error() string {
	s := "connection ended by " + e.By.String()
	if e.By != Network {
		s += ": " + e.Code.String()
	}
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *ConnError) Unwrap() error { return e.Err }

// ErrDraining is returned by Conn.Open on a connection that takes no new streams because either side
// sent GOAWAY. The request was not sent; another connection may take it.
var ErrDraining = errors.New("connection is draining")

// ErrNoConnectProtocol is returned by Conn.Open for an extended CONNECT that the peer has not allowed
// with SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441, section 3).
var ErrNoConnectProtocol = errors.New("peer has not enabled extended CONNECT")

// ErrPushDisabled is returned by Stream.Push where the peer does not take promises
// (SETTINGS_ENABLE_PUSH is 0, or this side is the client).
var ErrPushDisabled = errors.New("peer does not accept push")

// streamError and connError build errors for what the peer sent; By says who caused it, and a fault in
// received frames is the peer's, although the reset is sent by us.
func streamError(id uint32, code ErrCode, reason string) *StreamError {
	return &StreamError{StreamID: id, Code: code, By: Local, Reason: reason}
}

func connError(code ErrCode, reason string) *ConnError {
	return &ConnError{Code: code, By: Local, Reason: reason}
}
