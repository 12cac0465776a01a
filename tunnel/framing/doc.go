// Package framing carries a stream of bytes in the messages that some proxies insist on: those of WebSocket (RFC 6455) and
// those of gRPC. It knows nothing of tunnels, requests or answers: what is below is a net.Conn on which the exchange of
// heads is over, in HTTP/1.1 or HTTP/2 alike.
//
// Boundaries of messages mean nothing; bytes of a message are passed on as they come, and no message is held as a whole,
// so that its size costs no memory.
package framing
