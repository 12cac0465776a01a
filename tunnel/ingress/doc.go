// Package ingress serves listeners where clients come in that are no gateways: TCP, TLS that is passed on by the server name or
// ended here, HTTP/1.1, HTTP/2, WebSocket and gRPC, several of them on one port. It finds the flows in their connections and hands
// them to a tunnel.Gateway, which decides, opens and records them: a connection is one flow, and of HTTP each request is.
//
//	server.go    which protocol a connection speaks, by its first bytes (sniff.go)
//	tls.go       TLS ended: certificates by name (certs.go), clients' certificates
//	guard.go     HTTP/1.1 as strict as it has to be before net/http reads it
//	handler.go   a request becomes a flow; forward.go sends it on by httputil.ReverseProxy
//	upstream*.go over carriers, which are connections that the gateway has opened (pool.go)
//	upgrade.go   WebSocket and others: a request that becomes a byte stream
//
// What cannot be read in one way only is refused: a request whose end two readers could see at different places, two hosts, a
// path with dots. Of what a stranger says about others (forwarded, traceparent and the like) nothing goes on.
package ingress
