// Package datagram carries the datagrams of a socket in a stream of bytes: each is a DATAGRAM capsule (RFC 9297, section
// 3.5), as HTTP carries UDP (RFC 9298). A [Conn] has a socket on one side and that stream on the other, so that a relay
// which knows streams carries UDP as well.
//
//	socket ── recvmmsg, GRO ── Conn.Read ── capsules ── stream
//	socket ── sendmmsg, GSO ── Conn.Write ── capsules ── stream
//
// Where the system has them, many datagrams are read and written with one call: the system splits what is sent by size
// (UDP_SEGMENT) and joins what it receives (UDP_GRO); see udp(7).
package datagram
