package pki

import (
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"culvert/pki/spiffe"
)

func TestHandshakeBetweenGateways(t *testing.T) {
	ca := mustCA(t, testTD)
	a, b := fixedSource(t, ca, webText), fixedSource(t, ca, "spiffe://cluster.local/ns/default/sa/gw")
	var hello *tls.ClientHelloInfo
	server := b.ServerTLS(SameNamespace(b.ID))
	inner := server.GetConfigForClient
	server.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		hello = h
		return inner(h)
	}
	client := a.ClientTLS(Exactly(b.ID()))
	if !client.DynamicRecordSizingDisabled || !server.DynamicRecordSizingDisabled {
		t.Error("dynamic record sizing is on, want full records")
	}
	client.ClientSessionCache = tls.NewLRUClientSessionCache(4) // what a careless caller might do
	for range 2 {
		p := handshake(t, server, client)
		if p.clientErr != nil || p.serverErr != nil {
			t.Fatalf("handshake: client %v, server %v", p.clientErr, p.serverErr)
		}
		p.echo(t)
		for _, c := range []*tls.Conn{p.client, p.server} {
			if cs := c.ConnectionState(); cs.Version != tls.VersionTLS13 || cs.NegotiatedProtocol != "h2" || cs.DidResume {
				t.Errorf("state: version %x, protocol %q, resumed %v", cs.Version, cs.NegotiatedProtocol, cs.DidResume)
			}
		}
		if id, err := PeerID(p.server.ConnectionState()); err != nil || id != a.ID() {
			t.Errorf("PeerID at the server = %q, %v", id, err)
		}
		if id, err := PeerID(p.client.ConnectionState()); err != nil || id != b.ID() {
			t.Errorf("PeerID at the client = %q, %v", id, err)
		}
	}
	if hello.ServerName != "" {
		t.Errorf("the client sent the server name %q, want none", hello.ServerName)
	}
}

func TestPeerIDWithoutPeer(t *testing.T) {
	ca := mustCA(t, testTD)
	_, cert := leaf(t, ca, nil)
	for name, cs := range map[string]tls.ConnectionState{
		"nothing":             {},
		"no certificate":      {HandshakeComplete: true},
		"unfinished":          {PeerCertificates: []*x509.Certificate{cert}},
		"certificate of a CA": {HandshakeComplete: true, PeerCertificates: []*x509.Certificate{ca.cert}},
	} {
		t.Run(name, func(t *testing.T) {
			if id, err := PeerID(cs); err == nil || !id.IsZero() {
				t.Errorf("PeerID = %q, %v, want an error", id, err)
			}
		})
	}
}

// RFC 7301, section 3.2: "In the event that the server supports no protocols that the client advertises, then
// the server SHALL respond with a fatal no_application_protocol alert."
func TestALPN(t *testing.T) {
	ca := mustCA(t, testTD)
	gw := fixedSource(t, ca, webText)
	for _, tc := range []struct {
		name   string
		offer  []string
		chosen string
		ok     bool
	}{
		{"h2", []string{"h2"}, "h2", true},
		{"h2 after others", []string{"http/1.1", "x", "h2"}, "h2", true},
		{"none at all", nil, "", true},
		{"http/1.1, which crypto/tls would let in", []string{"http/1.1"}, "", false},
		{"http/1.1 and others", []string{"http/1.1", "http/1.0"}, "", false},
		{"h2c", []string{"h2c"}, "", false},
		{"h3", []string{"h3"}, "", false},
		{"smtp", []string{"smtp"}, "", false},
		{"istio", []string{"istio-peer-exchange", "istio"}, "", false},
		{"upper case", []string{"H2"}, "", false},
		{"the longest name there is", []string{strings.Repeat("-", 255)}, "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client := gw.ClientTLS(nil)
			client.NextProtos, client.VerifyConnection = tc.offer, nil
			p := handshake(t, gw.ServerTLS(nil), client)
			if tc.ok {
				if p.clientErr != nil || p.serverErr != nil || p.server.ConnectionState().NegotiatedProtocol != tc.chosen {
					t.Errorf("client %v, server %v, want protocol %q", p.clientErr, p.serverErr, tc.chosen)
				}
				return
			}
			if number, ok := Alert(p.clientErr); !ok || number != 120 || p.serverErr == nil {
				t.Errorf("client %v, server %v, want no_application_protocol", p.clientErr, p.serverErr)
			}
		})
	}
}

func TestServerWithoutH2IsRefused(t *testing.T) {
	ca := mustCA(t, testTD)
	gw := fixedSource(t, ca, webText)
	server := hostileTLS(gw.Current().Certificate)
	server.NextProtos = nil
	p := handshake(t, server, gw.ClientTLS(nil))
	pe, ok := errors.AsType[*PeerError](p.clientErr)
	if !ok || pe.Reason != BadALPN || pe.ID != webID(t) {
		t.Errorf("client %v, want a *PeerError about ALPN", p.clientErr)
	}
}

func TestRefusedInTLS(t *testing.T) {
	ca := mustCA(t, testTD)
	gw, web := fixedSource(t, ca, "spiffe://cluster.local/ns/default/sa/gw"), fixedSource(t, ca, webText)
	otherNS := fixedSource(t, ca, "spiffe://cluster.local/ns/other/sa/web")
	stolen := gw.ClientTLS(nil)
	stolen.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: web.Current().Certificate.Certificate, PrivateKey: newECKey(t, elliptic.P256())}, nil
	}
	anonymous := gw.ClientTLS(nil)
	anonymous.GetClientCertificate = nil
	huge := gw.ClientTLS(nil)
	huge.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert, _ := leaf(t, ca, func(s *leafSpec) {
			ext := sanExtension(t, nil, []string{strings.Repeat("x", 1<<20)})
			ext.Id, ext.Critical = []int{1, 2, 3, 4}, false
			s.template.ExtraExtensions = append(s.template.ExtraExtensions, ext)
		})
		return &cert, nil
	}
	tls12 := gw.ClientTLS(nil)
	tls12.MinVersion, tls12.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for _, tc := range []struct {
		name   string
		client *tls.Config
		alert  uint8
		reason Reason // of the server's PeerError, "" if crypto/tls refuses
	}{
		{"no certificate", anonymous, 116, ""},
		{"TLS 1.2", tls12, 70, ""},
		{"certificate of another without its key", stolen, 51, ""},
		{"a certificate of 1 MB", huge, 80, ""}, // before it is read: crypto/tls takes 256 KiB
		{"other namespace", otherNS.ClientTLS(nil), 42, NotAllowed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := handshake(t, gw.ServerTLS(SameNamespace(gw.ID)), tc.client)
			number, ok := Alert(p.clientErr)
			if !ok || number != tc.alert || p.serverErr == nil {
				t.Errorf("client %v (alert %d), server %v, want alert %d", p.clientErr, number, p.serverErr, tc.alert)
			}
			pe, isPeer := errors.AsType[*PeerError](p.serverErr)
			if isPeer != (tc.reason != "") || isPeer && (pe.Reason != tc.reason || pe.ID != otherNS.ID() || pe.Err == nil) {
				t.Errorf("server: %v, want reason %q", p.serverErr, tc.reason)
			}
		})
	}
}

func TestVerifyCauseIsKept(t *testing.T) {
	ca := mustCA(t, testTD)
	gw, web := fixedSource(t, ca, "spiffe://cluster.local/ns/default/sa/gw"), fixedSource(t, ca, webText)
	cause := errors.New("not today")
	p := handshake(t, gw.ServerTLS(nil), web.ClientTLS(func(spiffe.ID) error { return cause }))
	if !errors.Is(p.clientErr, cause) || !strings.Contains(p.clientErr.Error(), gw.ID().String()) {
		t.Errorf("client %v, want the cause and the identity in it", p.clientErr)
	}
}

// An identity that runs out starts no new connection, and says so itself instead of leaving it to the peer.
func TestOwnExpiredIdentity(t *testing.T) {
	ca := mustCA(t, testTD)
	gw := fixedSource(t, ca, webText)
	cert, parsed := leaf(t, ca, func(s *leafSpec) { s.template.NotAfter = time.Now().Add(-time.Second) })
	old := *gw.Current()
	old.Certificate, old.NotAfter = cert, parsed.NotAfter
	old.Certificate.Leaf = parsed
	late := Fixed(&old)
	for name, p := range map[string]pair{
		"as client": handshake(t, gw.ServerTLS(nil), late.ClientTLS(nil)),
		"as server": handshake(t, late.ServerTLS(nil), gw.ClientTLS(nil)),
	} {
		t.Run(name, func(t *testing.T) {
			err := p.clientErr
			if name == "as server" {
				err = p.serverErr
			}
			ce, ok := errors.AsType[*ConfigError](err)
			if !ok || ce.Reason != Expired || ce.Mend == "" {
				t.Errorf("handshake with an expired identity of our own: %v, want a *ConfigError", err)
			}
		})
	}
}

func TestAlertOfOtherErrors(t *testing.T) {
	for name, err := range map[string]error{
		"nil":                 nil,
		"EOF":                 io.EOF,
		"network error":       &net.OpError{Op: "read", Err: errors.New("reset")},
		"remote error, text":  &net.OpError{Op: "remote error", Err: errors.New("x")},
		"remote error, empty": &net.OpError{Op: "remote error"},
	} {
		t.Run(name, func(t *testing.T) {
			if number, ok := Alert(err); ok {
				t.Errorf("Alert(%v) = %d, want none", err, number)
			}
		})
	}
	for _, number := range []uint8{40, 42, 45, 46, 48, 49, 70, 112, 116, 120} {
		if AlertHint(number) == "" {
			t.Errorf("AlertHint(%d) is empty", number)
		}
	}
	if hint := AlertHint(0); hint != "" {
		t.Errorf("AlertHint(0) = %q, want nothing", hint)
	}
}
