package ingress

import (
	"errors"
	"net/http"
	"slices"
	"strings"

	"culvert/tunnel"
)

// defaultRetries is how often a request is tried again by default.
const defaultRetries = 1

// roundTrip sends the request on and returns the answer. It is tried again where that can do no harm.
func (q *exchange) roundTrip(r *http.Request) (*http.Response, error) {
	route := q.route()
	left := route.Retries
	if left == 0 {
		left = defaultRetries
	}
	try := q.try1
	if q.speaks2(route) {
		try = q.try2
	}
	var last error
	for {
		resp, err := try(r)
		if err == nil {
			return resp, nil
		}
		if last != nil && tunnel.CauseOf(err) == tunnel.CauseNoEndpoint {
			return nil, last // which says more
		}
		var again *againError
		if !errors.As(err, &again) || r.Context().Err() != nil {
			return nil, err
		}
		if !again.stale {
			left--
			q.failed = again.err
		}
		if last = again.err; left < 0 {
			return nil, again.err
		}
	}
}

// againError is of a try after which the request may be sent again.
type againError struct {
	err   error
	stale bool // a carrier was kept for too long: this is no try
}

// Error is that of the try.
func (e *againError) Error() string { return e.err.Error() }

// Unwrap returns the error of the try.
func (e *againError) Unwrap() error { return e.err }

// speaks2 reports whether the destination is spoken to in HTTP/2.
func (q *exchange) speaks2(route *tunnel.RouteHTTPConfig) bool {
	if route.Upstream != "" {
		return route.Upstream == tunnel.UpstreamHTTP2
	}
	return strings.HasPrefix(first(q.r.Header["Content-Type"], ""), "application/grpc")
}

// replayable reports whether a request that may have been carried out can be sent again (RFC 9110, section 9.2.2): it changes nothing
// when it is carried out twice, and nothing of it is used up.
func (q *exchange) replayable() bool {
	return q.r.ContentLength == 0 && slices.Contains([]string{"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"}, q.r.Method)
}

// open connects to the destination. A failure to reach it may be tried again, as nothing was sent.
func (q *exchange) open(take func(tunnel.CarrierKey) *tunnel.Carrier) (*tunnel.Carrier, error) {
	c, err := q.x.Open(take, q.failed)
	q.failed = nil
	if err == nil {
		return c, nil
	}
	switch tunnel.CauseOf(err) {
	case tunnel.CauseRefused, tunnel.CauseTimeout, tunnel.CauseUnroutable, tunnel.CauseUnavailable:
		return nil, &againError{err: err}
	}
	return nil, err
}

// obliged gives the request the fields that policy wants it to have.
func (q *exchange) obliged(r *http.Request) {
	for _, h := range q.x.Headers() {
		plain := plainName(http.CanonicalHeaderKey(h.Name))
		for name := range r.Header { // in another spelling that applications take for the same
			if plainName(name) == plain {
				delete(r.Header, name)
			}
		}
		r.Header.Set(h.Name, h.Value)
	}
}
