// Package h2 is HTTP/2 (RFC 9113) as a transport: a connection that opens and accepts streams, where
// every stream is a [net.Conn] with CloseWrite, deadlines and Reset.
//
// Client and server are one code with a role bit, and the role does not depend on who dialled, so a
// dialled connection can serve. CONNECT tunnels, extended CONNECT (RFC 8441), ordinary requests, gRPC
// and server push ride on the same connection: [Config.Handler] gets every stream that the peer opens,
// [HTTPHandler] turns a net/http Handler into such a function, and [Conn.RoundTrip] makes the client
// half an [net/http.RoundTripper].
//
// # The path of a byte
//
// Outbound: Stream.Write or Stream.ReadFrom (stream_send.go) queues the bytes at the scheduler
// (sched.go); whoever holds the write role encodes frames and hands them to the connection
// (conn_send.go). No goroutine stands between. ReadFrom reads a socket straight into a pooled buffer
// that has room for the frame header, so nothing is copied.
//
// Inbound: readLoop (conn_recv.go) reads the connection into pooled buffers, parses frames in place
// (frame.go) and appends DATA by reference to the stream (stream_recv.go). The stream's reader, or the
// goroutine of Stream.Pipe that exists only while there are bytes, writes them to their sink.
//
// # Locks
//
// Conn.mu guards the connection, the states of its streams and everything about sending; Stream.mu
// guards what was received. Conn.mu is taken before Stream.mu, and neither is held during network I/O
// or while a hook of [Config] runs. The writer's role (Conn.busy) is held during I/O; readLoop never
// takes it, so no stream and no slow peer can stop the reading.
package h2
