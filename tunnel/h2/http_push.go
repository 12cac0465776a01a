package h2

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// errPushOnPush is what Push returns for the handler of a pushed request: "PUSH_PROMISE frames MUST only
// be sent on a peer-initiated stream" (RFC 9113, section 6.6).
var errPushOnPush = errors.New("push from the handler of a pushed request")

// Push promises a GET or HEAD of target to the client and has the handler serve it (RFC 9113, section
// 8.4). It returns when the promise was sent. [http.ErrNotSupported] means that the client does not
// take promises.
func (w *responseWriter) Push(target string, opts *http.PushOptions) error {
	if w.pushed {
		return errPushOnPush
	}
	if opts == nil {
		opts = &http.PushOptions{}
	}
	h, err := w.promise(target, opts)
	if err != nil {
		return fmt.Errorf("push %s: %w", target, err)
	}
	w.mu.Lock()
	returned := w.returned
	w.mu.Unlock()
	if returned {
		return errHandlerReturned
	}
	st, err := w.st.Push(h)
	if errors.Is(err, ErrPushDisabled) {
		return http.ErrNotSupported
	}
	if err != nil {
		return fmt.Errorf("push %s: %w", target, err)
	}
	beside(func() { w.server.serve(st, true) })
	return nil
}

// promise makes the head of a promised request: safe, without content, for the authority of this one
// unless target names another (RFC 9113, section 8.4.1).
func (w *responseWriter) promise(target string, opts *http.PushOptions) (*Header, error) {
	h := &Header{Method: opts.Method, Scheme: "http", Authority: w.authority}
	if w.secure {
		h.Scheme = "https"
	}
	switch h.Method {
	case "":
		h.Method = http.MethodGet
	case http.MethodGet, http.MethodHead:
	default:
		return nil, fmt.Errorf("method %s is not GET or HEAD", h.Method)
	}
	u, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	switch {
	case u.Scheme == "" && !strings.HasPrefix(target, "/"):
		return nil, errors.New("target is neither an absolute URL nor an absolute path")
	case u.Scheme != "" && u.Scheme != h.Scheme:
		return nil, fmt.Errorf("scheme %s on a request of scheme %s", u.Scheme, h.Scheme)
	case u.Scheme != "" && u.Host == "":
		return nil, errors.New("URL without host")
	case u.Host != "":
		h.Authority = u.Host
	}
	h.Path = u.RequestURI()
	for k, values := range opts.Header {
		wire, ok := wireName(k)
		if !ok || isHopByHop(wire) {
			return nil, fmt.Errorf("a promise cannot have the field %q", k)
		}
		switch wire {
		case "content-length", "content-encoding", "trailer", "te", "expect", "host":
			return nil, fmt.Errorf("a promise cannot have the field %q", k)
		}
		h.Fields = appendValues(h.Fields, wire, values)
	}
	return h, nil
}
