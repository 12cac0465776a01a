package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"culvert/capture"
	"culvert/tunnel/h2"
)

func TestVerdictsAreComplete(t *testing.T) {
	words := make(map[string]Cause)
	for c := range numCauses {
		v := verdicts[c]
		if v.word == "" || v.status == 0 {
			t.Errorf("cause %d has no line in the table", c)
		}
		if other, ok := words[v.word]; ok {
			t.Errorf("causes %d and %d are both called %q", c, other, v.word)
		}
		words[v.word] = c
		if c == CauseNone {
			continue
		}
		if v.proxy == "" || v.public == "" || !isToken(v.proxy) {
			t.Errorf("%s: error type %q, public reason %q; want both, the type a token", v.word, v.proxy, v.public)
		}
		if v.status != 400 && v.status != 401 && v.status != 500 && v.status != 503 {
			t.Errorf("%s: status %d, want 400, 401, 500 or 503", v.word, v.status)
		}
		if c > CauseSourceGone && (v.reset == h2.NoError || v.reset == h2.Cancel) {
			t.Errorf("%s: reset code %v looks like a clean end to a ztunnel", v.word, v.reset)
		}
	}
}

func TestCauseOf(t *testing.T) {
	dial := func(errno syscall.Errno) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", errno)}
	}
	for _, tt := range []struct {
		name string
		err  error
		want Cause
	}{
		{"nil", nil, CauseNone},
		{"own", fmt.Errorf("open: %w", &Error{Cause: CauseDenied}), CauseDenied},
		{"authority", &AuthorityError{}, CauseMalformed},
		{"refused", dial(syscall.ECONNREFUSED), CauseRefused},
		{"host unreachable", dial(syscall.EHOSTUNREACH), CauseUnavailable},
		{"network unreachable", dial(syscall.ENETUNREACH), CauseUnroutable},
		{"no free port", dial(syscall.EADDRNOTAVAIL), CauseFull},
		{"no files", dial(syscall.EMFILE), CauseFull},
		{"system's timeout", dial(syscall.ETIMEDOUT), CauseTimeout},
		{"deadline", fmt.Errorf("dial: %w", context.DeadlineExceeded), CauseTimeout},
		{"cancelled", fmt.Errorf("dial: %w", context.Canceled), CauseSourceGone},
		{"no such host", &net.DNSError{IsNotFound: true}, CauseDNS},
		{"DNS timeout", &net.DNSError{IsTimeout: true}, CauseDNSTimeout},
		{"end", io.EOF, CauseUnavailable},
		{"connection of the hop", &h2.ConnError{Code: h2.ProtocolError}, CauseUnavailable},
		{"unknown", errors.New("x"), CauseInternal},
		{"hop says 401", &RefusedError{Status: 401}, CauseDenied},
		{"hop says 403, as Envoy", &RefusedError{Status: 403}, CauseDenied},
		{"hop says 400", &RefusedError{Status: 400}, CauseMalformed},
		{"hop says 503", &RefusedError{Status: 503}, CauseUnavailable},
		{"hop says 204", &RefusedError{Status: 204}, CauseHopProtocol},
		{"hop says why", &RefusedError{Status: 503, Statuses: []ProxyStatus{{Error: "connection_refused"}, {ReceivedStatus: 503}}}, CauseRefused},
		{"hop says why in details", &RefusedError{Status: 401, Statuses: []ProxyStatus{{Error: "http_request_denied", Details: "no route to the destination"}}}, CauseNoRoute},
		{"hop's details are not ours", &RefusedError{Status: 401, Statuses: []ProxyStatus{{Error: "http_request_denied", Details: "rbac"}}}, CauseDenied},
		{"hop's details are of another type", &RefusedError{Status: 503, Statuses: []ProxyStatus{{Error: "dns_error", Details: "connection refused"}}}, CauseDNS},
		{"hop's details without a type", &RefusedError{Status: 503, Statuses: []ProxyStatus{{Details: "connection refused"}}}, CauseUnavailable},
		{"hop says no to CONNECT itself", &RefusedError{Status: 400, Statuses: []ProxyStatus{{Error: "http_request_error", Details: "only CONNECT is served here"}}}, CauseMalformed},
		{"hop says that our app went away", &RefusedError{Status: 503, Statuses: []ProxyStatus{{Error: "connection_terminated", Details: "request withdrawn"}}}, CauseUnavailable},
		{"hop's reason does not fit its status", &RefusedError{Status: 401, Statuses: []ProxyStatus{{Error: "connection_refused"}}}, CauseDenied},
		{"hop gives a reason that nobody knows", &RefusedError{Status: 503, Statuses: []ProxyStatus{{Error: "sunspots"}}}, CauseUnavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := CauseOf(tt.err); got != tt.want {
				t.Errorf("CauseOf(%v) = %v, want %v", tt.err, got, tt.want)
			}
		})
	}
	if got := verdicts[CauseRefused].refusal; got != capture.ConnectionRefused {
		t.Errorf("an app hears %v of a refused connection, want %v", got, capture.ConnectionRefused)
	}
}

// What one gateway says of its no is what the next one records, word for word; it takes no word that a
// gateway cannot have for its no.
func TestCauseIsNotRenamedByAnotherGateway(t *testing.T) {
	for c := range numCauses {
		said := proxyStatus("exit", &Error{Cause: c})
		heard := (&RefusedError{Status: verdicts[c].status, Statuses: parseProxyStatus([]string{said})}).cause()
		if c.ofHop() && heard != c {
			t.Errorf("a hop says %s, which is heard as %v, want %v", said, heard, c)
		}
		if !c.ofHop() && (heard == c || !heard.ofHop()) {
			t.Errorf("a hop says %s, which is heard as %v, want another cause, one of a hop", said, heard)
		}
	}
}

func TestProxyStatus(t *testing.T) {
	secret := errors.New("10.1.2.3 is not reachable from spiffe://cluster.local/ns/x/sa/y")
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"policy", &Error{Cause: CauseDenied, Policy: "default", Rule: "same-namespace", Reason: secret.Error(), Err: secret},
			`"exit"; error=http_request_denied; details="denied by policy"; policy="default"; rule="same-namespace"`},
		{"network", fmt.Errorf("dial 10.1.2.3: %w", syscall.ECONNREFUSED), `"exit"; error=connection_refused; details="connection refused"`},
		{"farther hop", &RefusedError{Status: 503, Hop: "b", Statuses: []ProxyStatus{{Name: `far "b"`, Error: "dns_error", Details: "no"}}},
			`"far \"b\""; error=dns_error; details="no", "exit"; received-status=503`},
		{"farther hop that says nothing", &RefusedError{Status: 403, Hop: "b"}, `"exit"; received-status=403; error=http_request_denied`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := proxyStatus("exit", tt.err)
			if got != tt.want {
				t.Errorf("proxyStatus = %s, want %s", got, tt.want)
			}
			if strings.Contains(got, "10.1.2.3") || strings.Contains(got, "ns/x") {
				t.Errorf("proxyStatus tells an address or an identity: %s", got)
			}
			if again := parseProxyStatus([]string{got}); len(again) == 0 || again[len(again)-1].Name != "exit" {
				t.Errorf("parseProxyStatus(%s) = %+v, want to end with exit", got, again)
			}
		})
	}
}

func TestParseProxyStatus(t *testing.T) {
	many := strings.Repeat("a, ", 20) + "a"
	for _, tt := range []struct {
		name string
		in   []string
		want []ProxyStatus
	}{
		{"none", nil, nil},
		{"empty", []string{""}, nil},
		{"token", []string{"cdn.example; error=dns_error;rcode=SERVFAIL"}, []ProxyStatus{{Name: "cdn.example", Error: "dns_error"}}},
		{"two lines", []string{`"a"; received-status=401`, "b"}, []ProxyStatus{{Name: "a", ReceivedStatus: 401}, {Name: "b"}}},
		{"a flag", []string{"a;x;error=dns_error"}, []ProxyStatus{{Name: "a", Error: "dns_error"}}},
		{"good then bad", []string{`a, "b`}, []ProxyStatus{{Name: "a"}}},
		{"bad string", []string{"\"a\x00\""}, nil},
		{"bad escape", []string{`"a\b"`}, nil},
		{"too long", []string{strings.Repeat("a", maxProxyStatusLen+1)}, nil},
		{"too many parameters", []string{"a" + strings.Repeat(";b", maxProxyStatusParams+1)}, nil},
		{"huge number", []string{"a;received-status=99999999999"}, []ProxyStatus{{Name: "a"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := parseProxyStatus(tt.in); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("parseProxyStatus(%q) = %+v, want %+v", tt.in, got, tt.want)
			}
		})
	}
	if got := parseProxyStatus([]string{many, many}); len(got) != maxProxyStatusMembers {
		t.Errorf("parseProxyStatus of %d members = %d, want the limit %d", 42, len(got), maxProxyStatusMembers)
	}
}

func FuzzParseProxyStatus(f *testing.F) {
	for _, s := range []string{`"a"; error=dns_error; details="x\"y"`, "a, b;c=1, ", `"`, "a;;", "a;received-status=1023"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list := parseProxyStatus([]string{s})
		text := proxyStatus("me", &RefusedError{Status: 503, Statuses: list})
		if strings.ContainsAny(text, "\r\n\x00") {
			t.Fatalf("proxyStatus(%q) = %q holds a control character", s, text)
		}
		if again := parseProxyStatus([]string{text}); len(text) <= maxProxyStatusLen && len(list) < maxProxyStatusMembers && len(again) != len(list)+1 {
			t.Fatalf("%q reads as %d members, written back as %q it reads as %d, want one more", s, len(list), text, len(again))
		}
	})
}
