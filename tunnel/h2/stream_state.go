package h2

// streamState is the state of a stream (RFC 9113, section 5.1). It changes only through the methods
// below, named after events.
//
//	                         +--------+
//	                 send PP |        | recv PP
//	                ,--------+  idle  +--------.
//	               /         |        |         \
//	              v          +--------+          v
//	       +----------+          |           +----------+
//	       |          |          | send H /  |          |
//	,------+ reserved |          | recv H    | reserved +------.
//	|      | (local)  |          |           | (remote) |      |
//	|      +---+------+          v           +------+---+      |
//	|          |             +--------+             |          |
//	|          |     recv ES |        | send ES     |          |
//	|   send H |     ,-------+  open  +-------.     | recv H   |
//	|          |    /        |        |        \    |          |
//	|          v   v         +---+----+         v   v          |
//	|      +----------+          |           +----------+      |
//	|      |   half-  |          |           |   half-  |      |
//	|      |  closed  |          | send R /  |  closed  |      |
//	|      | (remote) |          | recv R    | (local)  |      |
//	|      +----+-----+          |           +-----+----+      |
//	|           | send ES /      |      recv ES /  |           |
//	|           | send R / recv R v  send R / recv R           |
//	|  send R / |            +--------+            | send R /  |
//	|  recv R   `----------->| closed |<-----------'  recv R   |
//	`----------------------->|        |<-----------------------'
//	                         +--------+
type streamState uint8

const (
	stateIdle streamState = iota
	stateReservedLocal
	stateReservedRemote
	stateOpen
	stateHalfClosedLocal
	stateHalfClosedRemote
	stateClosed
)

// String returns the name of RFC 9113, section 5.1.
func (s streamState) String() string {
	return [...]string{"idle", "reserved (local)", "reserved (remote)", "open",
		"half-closed (local)", "half-closed (remote)", "closed"}[s]
}

// canSend reports whether DATA may be sent.
func (s streamState) canSend() bool { return s == stateOpen || s == stateHalfClosedRemote }

// canReceive reports whether the peer may send DATA.
func (s streamState) canReceive() bool { return s == stateOpen || s == stateHalfClosedLocal }

// sendHeaders is HEADERS sent: a request, an answer on a promised stream, or more of an open stream.
func (s streamState) sendHeaders() streamState {
	switch s {
	case stateIdle:
		return stateOpen
	case stateReservedLocal:
		return stateHalfClosedRemote
	}
	return s
}

// recvHeaders is HEADERS received.
func (s streamState) recvHeaders() streamState {
	switch s {
	case stateIdle:
		return stateOpen
	case stateReservedRemote:
		return stateHalfClosedLocal
	}
	return s
}

// sendEnd is END_STREAM sent.
func (s streamState) sendEnd() streamState {
	switch s {
	case stateOpen:
		return stateHalfClosedLocal
	case stateHalfClosedRemote:
		return stateClosed
	}
	return s
}

// recvEnd is END_STREAM received.
func (s streamState) recvEnd() streamState {
	switch s {
	case stateOpen:
		return stateHalfClosedRemote
	case stateHalfClosedLocal:
		return stateClosed
	}
	return s
}

// reset is RST_STREAM sent or received.
func (s streamState) reset() streamState { return stateClosed }
