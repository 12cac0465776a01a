package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"

	"culvert/capture"
	"culvert/pki/spiffe"
	"culvert/tunnel/h2"
)

// Cause is why a flow was refused, or ended before both of its directions did. It is what metrics count
// and what the table below turns into an answer.
type Cause uint8

// The causes. CauseNone is a flow that ended well. Where a hop's answer fits several and its words tell no
// more, the first of them is taken (ProxyStatus.cause).
const (
	CauseNone             Cause = iota
	CauseInternal               // a fault of this gateway
	CauseConfiguration          // the configuration leads nowhere
	CauseMalformed              // what the peer asked for is no destination
	CauseNotConnect             // the request is no CONNECT
	CauseNotLocal               // an address that is not this host's, where only those are destinations
	CauseDenied                 // policy says no
	CauseToken                  // a request through a proxy of others has no token that is taken
	CauseRevoked                // the peer's identity, or a hop's, is not believed any more
	CauseExpired                // its certificate has expired
	CauseNoRoute                // no route takes the flow
	CauseProhibited             // the egress guard says no
	CauseLoop                   // the flow would come back here, or has passed too many gateways
	CauseUnknownHost            // no such name is known here
	CauseDNS                    // the name could not be resolved
	CauseDNSTimeout             // resolving took too long
	CauseRefused                // the destination refused the connection
	CauseTimeout                // the destination or a hop did not answer in time
	CauseUnroutable             // there is no way to the destination's network
	CauseUnavailable            // the destination or a hop cannot be had
	CauseNoEndpoint             // a service or a hop has no endpoint
	CauseOwnPort                // a port of the mesh itself
	CauseHopTLS                 // TLS with a hop failed, for none of the next three reasons
	CauseHopIdentity            // a hop is not who it should be
	CauseHopAlert               // a hop refused this gateway in TLS
	CauseHopProtocol            // a hop answered something else than HBONE, or than TLS
	CauseTLS                    // TLS with the destination failed, for none of the next two reasons
	CauseTLSCertificate         // the destination is not who it should be
	CauseTLSAlert               // the destination refused this gateway in TLS
	CauseFull                   // out of memory, files or streams
	CauseLimited                // a limit of policy is reached
	CauseCircuit                // a limit of a service or a hop is reached
	CauseDraining               // this gateway is stopping
	CauseMisdirected            // the client asks on this connection for a host that its certificate does not cover
	CauseTooLong                // the body of a request is too long
	CauseHeadTooLong            // the head is
	CauseSlow                   // the client takes too long to send its request
	CauseSourceGone             // the accepted end went away before the answer
	CauseSourceBroke            // the accepted end broke while the flow ran
	CauseDestinationBroke       // the opened end broke while the flow ran
	CauseIdle                   // no byte for the idle time
	CauseAge                    // the greatest age was reached
	CauseCut                    // cut by the operator, or at the end of draining
	numCauses
)

// verdict is what follows from a Cause.
type verdict struct {
	word    string          // in records and metrics
	status  int             // HTTP status, for an answer before the tunnel stands (HBONE.md, "Status codes")
	proxy   string          // error type (RFC 9209, section 2.3)
	reset   h2.ErrCode      // RST_STREAM of a tunnel that stands
	refusal capture.Refusal // for an app
	public  string          // what a peer may know, one short phrase
}

// verdicts is the one map from errors to answers. Every cut of a standing tunnel is CONNECT_ERROR (RFC
// 9113, section 8.5), because a ztunnel takes NO_ERROR and CANCEL for a clean end. Status 401 for what
// this gateway does not allow, 400 for what the peer should have written otherwise, 503 for the rest.
var verdicts = [numCauses]verdict{
	CauseNone:             {"ok", 200, "", h2.NoError, capture.General, ""},
	CauseInternal:         {"internal", 500, "proxy_internal_error", h2.InternalError, capture.General, "internal error"},
	CauseConfiguration:    {"configuration", 500, "proxy_configuration_error", h2.InternalError, capture.General, "configuration error"},
	CauseMalformed:        {"malformed", 400, "http_request_error", h2.ProtocolError, capture.General, "malformed destination"},
	CauseNotConnect:       {"not-connect", 400, "http_request_error", h2.ProtocolError, capture.General, "only CONNECT is served here"},
	CauseNotLocal:         {"not-local", 400, "http_request_error", h2.ConnectError, capture.NotAllowed, "destination is not this host"},
	CauseNoRoute:          {"no-route", 401, "http_request_denied", h2.ConnectError, capture.NotAllowed, "no route to the destination"},
	CauseDenied:           {"denied", 401, "http_request_denied", h2.ConnectError, capture.NotAllowed, "denied by policy"},
	CauseToken:            {"token", 401, "http_request_denied", h2.ConnectError, capture.NotAllowed, "token missing or not taken"},
	CauseRevoked:          {"revoked", 401, "http_request_denied", h2.ConnectError, capture.NotAllowed, "identity not trusted"},
	CauseExpired:          {"expired", 401, "http_request_denied", h2.ConnectError, capture.NotAllowed, "certificate expired"},
	CauseProhibited:       {"prohibited", 401, "destination_ip_prohibited", h2.ConnectError, capture.NotAllowed, "destination is not allowed"},
	CauseLoop:             {"loop", 503, "proxy_loop_detected", h2.ConnectError, capture.HostUnreachable, "loop"},
	CauseOwnPort:          {"own-port", 503, "destination_unavailable", h2.ConnectError, capture.HostUnreachable, "port of the mesh"},
	CauseUnknownHost:      {"unknown-host", 503, "destination_not_found", h2.ConnectError, capture.NameNotFound, "unknown host"},
	CauseDNS:              {"dns", 503, "dns_error", h2.ConnectError, capture.NameNotFound, "name not resolved"},
	CauseDNSTimeout:       {"dns-timeout", 503, "dns_timeout", h2.ConnectError, capture.TimedOut, "resolving timed out"},
	CauseRefused:          {"refused", 503, "connection_refused", h2.ConnectError, capture.ConnectionRefused, "connection refused"},
	CauseTimeout:          {"timeout", 503, "connection_timeout", h2.ConnectError, capture.TimedOut, "connection timed out"},
	CauseUnroutable:       {"unroutable", 503, "destination_ip_unroutable", h2.ConnectError, capture.NetworkUnreachable, "network unreachable"},
	CauseUnavailable:      {"unavailable", 503, "destination_unavailable", h2.ConnectError, capture.HostUnreachable, "destination unavailable"},
	CauseNoEndpoint:       {"no-endpoint", 503, "destination_unavailable", h2.ConnectError, capture.HostUnreachable, "no endpoint"},
	CauseHopTLS:           {"hop-tls", 503, "tls_protocol_error", h2.ConnectError, capture.NetworkUnreachable, "TLS with the next hop failed"},
	CauseHopIdentity:      {"hop-identity", 503, "tls_certificate_error", h2.ConnectError, capture.NetworkUnreachable, "the next hop is not who it should be"},
	CauseHopAlert:         {"hop-alert", 503, "tls_alert_received", h2.ConnectError, capture.NetworkUnreachable, "the next hop refused this gateway"},
	CauseHopProtocol:      {"hop-protocol", 503, "http_protocol_error", h2.ConnectError, capture.General, "the next hop answered amiss"},
	CauseTLS:              {"tls", 503, "tls_protocol_error", h2.ConnectError, capture.NetworkUnreachable, "TLS with the destination failed"},
	CauseTLSCertificate:   {"tls-certificate", 503, "tls_certificate_error", h2.ConnectError, capture.NetworkUnreachable, "the destination is not who it should be"},
	CauseTLSAlert:         {"tls-alert", 503, "tls_alert_received", h2.ConnectError, capture.NetworkUnreachable, "the destination refused this gateway"},
	CauseFull:             {"full", 503, "connection_limit_reached", h2.ConnectError, capture.Unavailable, "at a limit"},
	CauseLimited:          {"limited", 503, "connection_limit_reached", h2.ConnectError, capture.Unavailable, "at a limit of policy"},
	CauseCircuit:          {"circuit", 503, "connection_limit_reached", h2.ConnectError, capture.Unavailable, "at a limit of the destination"},
	CauseDraining:         {"draining", 503, "proxy_internal_response", h2.ConnectError, capture.Unavailable, "stopping"},
	CauseMisdirected:      {"misdirected", 400, "http_request_error", h2.ProtocolError, capture.General, "not served on this connection"},
	CauseTooLong:          {"too-long", 400, "http_request_error", h2.ProtocolError, capture.General, "the body is too long"},
	CauseHeadTooLong:      {"head-too-long", 400, "http_request_error", h2.ProtocolError, capture.General, "the head is too long"},
	CauseSlow:             {"slow", 400, "http_request_error", h2.ProtocolError, capture.General, "the request takes too long"},
	CauseSourceGone:       {"source-gone", 503, "connection_terminated", h2.Cancel, capture.General, "request withdrawn"},
	CauseSourceBroke:      {"source-broke", 503, "connection_terminated", h2.ConnectError, capture.General, "connection terminated"},
	CauseDestinationBroke: {"destination-broke", 503, "connection_terminated", h2.ConnectError, capture.General, "connection terminated"},
	CauseIdle:             {"idle", 503, "connection_terminated", h2.ConnectError, capture.General, "idle"},
	CauseAge:              {"age", 503, "connection_terminated", h2.ConnectError, capture.General, "greatest age"},
	CauseCut:              {"cut", 503, "connection_terminated", h2.ConnectError, capture.General, "cut"},
}

// requestStatuses are the statuses by which a client of HTTP hears why its request was refused, as RFC 9209, section 2.3, recommends
// most of them; 0: bad gateway.
var requestStatuses = [numCauses]int{
	CauseNone: 200, CauseInternal: 500, CauseConfiguration: 500, CauseMalformed: 400, CauseNotConnect: 400, CauseNotLocal: 421,
	CauseNoRoute: 404, CauseDenied: 403, CauseToken: 401, CauseRevoked: 403, CauseExpired: 403, CauseProhibited: 403, CauseLoop: 508, CauseOwnPort: 403,
	CauseDNSTimeout: 504, CauseTimeout: 504, CauseUnavailable: 503, CauseFull: 503, CauseNoEndpoint: 503, CauseCircuit: 503, CauseLimited: 429, CauseDraining: 503,
	CauseMisdirected: 421, CauseTooLong: 413, CauseHeadTooLong: 431, CauseSlow: 408, CauseIdle: 504, CauseAge: 504, CauseCut: 503,
}

// String returns the word that records and metrics have for c: "ok", "denied", "dns-timeout".
func (c Cause) String() string {
	if c < numCauses {
		return verdicts[c].word
	}
	return fmt.Sprintf("cause %d", uint8(c))
}

// ofHop reports whether a hop may give c for its no to a CONNECT. What comes after an answer, or concerns
// only this gateway's own end of a flow, it may not: a record would blame the application for it.
func (c Cause) ofHop() bool {
	return c != CauseNone && c != CauseNotConnect && c <= CauseDraining
}

// Error is why this gateway refused or ended a flow.
type Error struct {
	Cause Cause
	// Hop is the name of the hop it happened at; "" at this gateway or the destination.
	Hop string
	// Policy and Rule name what decided, where something did. A peer is told both.
	Policy, Rule string
	// BadToken tells that the token of a request is why it is refused.
	BadToken bool
	// Reason is a sentence for the operator of this gateway. A peer is not told, for it may name
	// addresses and identities.
	Reason string
	// Err is what led here, where there is one. A peer is not told.
	Err error
}

// Error returns everything that is known, for this gateway's own record.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(verdicts[e.Cause].public)
	if e.Hop != "" {
		b.WriteString(" at hop " + e.Hop)
	}
	if e.Reason != "" {
		b.WriteString(": " + e.Reason)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap returns what led here.
func (e *Error) Unwrap() error { return e.Err }

// RefusedError is a hop's no to a CONNECT: any status but 200 (HBONE.md, "Response").
type RefusedError struct {
	// Status is the HTTP status that the hop answered.
	Status int
	// Hop is the name of the hop that answered, as configured here.
	Hop string
	// ID is who that is, as its certificate has proved.
	ID spiffe.ID
	// Statuses is what the hop and those behind it say of themselves (RFC 9209), the farthest first;
	// empty when they say nothing. It is their word: bounded and printable, but not proven.
	Statuses []ProxyStatus
}

// Error names the hop and repeats what it said.
func (e *RefusedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "hop %s answered %d", e.Hop, e.Status)
	for i := range e.Statuses {
		b.WriteString(": " + e.Statuses[i].describe())
	}
	return b.String()
}

// cause is what the farthest gateway that gave a reason says, else what the status says.
func (e *RefusedError) cause() Cause {
	for i := range e.Statuses {
		if c := e.Statuses[i].cause(e.Status); c != CauseNone {
			return c
		}
	}
	switch e.Status {
	case 400:
		return CauseMalformed
	case 401, 403, 407: // Envoy answers 403 for policy where ztunnel and we answer 401
		return CauseDenied
	case 503, 502, 504:
		return CauseUnavailable
	}
	return CauseHopProtocol
}

// refuser returns the name of the gateway that refused, which is the farthest that gave a reason, and the
// rule that it names. Of one that does not say who it is the name is that of the hop that answered.
func (e *RefusedError) refuser() (name, rule string) {
	for i := range e.Statuses {
		if s := &e.Statuses[i]; s.Error != "" {
			return cmp.Or(s.Name, e.Hop), s.Rule
		}
	}
	return e.Hop, ""
}

// CauseOf returns why err refused or ended a flow; CauseNone for nil. Errors of the network, of the
// resolver and of contexts are told apart; what it does not know is CauseInternal.
func CauseOf(err error) Cause {
	if err == nil {
		return CauseNone
	}
	var own *Error
	var refused *RefusedError
	var authority *AuthorityError
	var dns *net.DNSError
	switch {
	case errors.As(err, &own):
		return own.Cause
	case errors.As(err, &refused):
		return refused.cause()
	case errors.As(err, &authority):
		return CauseMalformed
	case errors.As(err, &dns):
		if dns.IsTimeout {
			return CauseDNSTimeout
		}
		return CauseDNS
	}
	return networkCause(err)
}

// networkCause tells the errors of dialling apart.
func networkCause(err error) Cause {
	var timeout interface{ Timeout() bool }
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Op == "remote error": // crypto/tls: an alert of the other side
		return CauseHopAlert
	case errors.Is(err, syscall.ECONNREFUSED):
		return CauseRefused
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ECONNRESET),
		errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return CauseUnavailable
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EAFNOSUPPORT):
		return CauseUnroutable
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.ENOBUFS),
		errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EADDRINUSE): // no local port is free
		return CauseFull
	case errors.Is(err, context.Canceled):
		return CauseSourceGone
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		return CauseTimeout
	}
	var conn *h2.ConnError
	var stream *h2.StreamError
	if errors.As(err, &conn) || errors.As(err, &stream) {
		return CauseUnavailable
	}
	return CauseInternal
}

// resetCode is the code with which a stream is reset because of err.
func resetCode(err error) h2.ErrCode { return verdicts[CauseOf(err)].reset }

// relayCause is why a flow whose ends both stood has broken: the error of the end, unless the flow was
// ended for a reason of ours.
func relayCause(err error, end Cause) error {
	var own *Error
	if errors.As(err, &own) {
		return err
	}
	return &Error{Cause: end, Err: err}
}
