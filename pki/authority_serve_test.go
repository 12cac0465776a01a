package pki

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"culvert/pki/spiffe"
)

// rawCodec carries messages as they are, so that the test's client shares nothing with ours.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error)      { return v.([]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = bytes.Clone(data); return nil }
func (rawCodec) Name() string                       { return "proto" }

var _ encoding.Codec = rawCodec{}

// istioClient asks as docs of Istio's protocol say: field 1 the CSR, field 3 the validity in seconds, and the answer's
// field 1, repeated, the chain. The bytes are made by hand.
type istioClient struct {
	conn *grpc.ClientConn
}

func newIstioClient(t testing.TB, addr string, conf *tls.Config) *istioClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(conf)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &istioClient{conn}
}

func (c *istioClient) create(ctx context.Context, csr, token string, seconds uint64) (chain []string, err error) {
	req := binary.AppendUvarint([]byte{1<<3 | 2}, uint64(len(csr)))
	req = append(req, csr...)
	if seconds > 0 {
		req = binary.AppendUvarint(append(req, 3<<3), seconds)
	}
	// Metadata as ztunnel has it: a Struct with one entry.
	req = append(req, 4<<3|2, 14, 1<<3|2, 12, 1<<3|2, 1, 'k', 2<<3|2, 7, 3<<3|2, 5, 'v', 'a', 'l', 'u', 'e')
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	var resp []byte
	err = c.conn.Invoke(ctx, "/istio.v1.auth.IstioCertificateService/CreateCertificate", req, &resp, grpc.ForceCodec(rawCodec{}))
	for len(resp) > 0 {
		n, used := binary.Uvarint(resp[1:])
		if resp[0] != 1<<3|2 || used <= 0 || uint64(len(resp)) < 1+uint64(used)+n {
			return nil, fmt.Errorf("an answer of %x", resp)
		}
		resp = resp[1+used:]
		chain, resp = append(chain, string(resp[:n])), resp[n:]
	}
	return chain, err
}

// ztunnelCSR is a CSR as ztunnel makes it: P-256, no subject, one URI in a critical SAN.
func ztunnelCSR(t testing.TB, id string) string {
	t.Helper()
	return csrOf(t, newECKey(t, elliptic.P256()), func(r *x509.CertificateRequest) {
		r.ExtraExtensions = []pkix.Extension{sanExtension(t, []string{id}, nil)}
	})
}

// workloadTokens is a verifier of tokens that behaves: "for ID, until TIME" is good until then.
func workloadTokens(_ context.Context, token string) (spiffe.ID, error) {
	id, until, ok := strings.Cut(token, "|")
	end, err := time.Parse(time.RFC3339, until)
	if !ok || err != nil {
		return spiffe.ID{}, errors.New("not a token of this issuer")
	}
	if time.Now().After(end) {
		return spiffe.ID{}, errors.New("the token has expired")
	}
	return spiffe.Parse(id)
}

func tokenFor(id spiffe.ID, ttl time.Duration) string {
	return id.String() + "|" + time.Now().Add(ttl).UTC().Format(time.RFC3339)
}

// A client written from the description of Istio's protocol gets a certificate.
func TestIstioClient(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{Tokens: workloadTokens, Names: []string{"localhost"}})
	a.serve("")
	c := newIstioClient(t, a.addr, a.clientTLS())
	id := mustID(t, "spiffe://cluster.local/ns/default/sa/zt")
	chain, err := c.create(t.Context(), ztunnelCSR(t, id.String()), tokenFor(id, time.Hour), 86400)
	if err != nil || len(chain) != 3 {
		t.Fatalf("CreateCertificate = %d certificates, %v, want 3", len(chain), err)
	}
	leaf := verifyIssued(t, chain, encodeCert(a.data.Load().anchor().Raw))
	if got, err := spiffe.FromCertificate(leaf); err != nil || got != id {
		t.Errorf("the identity is %v, %v", got, err)
	}
	if life := time.Until(leaf.NotAfter); life < 23*time.Hour {
		t.Errorf("valid for %v, and a day was asked for", life)
	}
	for _, tc := range []struct {
		name, csr, token string
		want             codes.Code
	}{
		{"no token", ztunnelCSR(t, id.String()), "", codes.Unauthenticated},
		{"expired token", ztunnelCSR(t, id.String()), tokenFor(id, -time.Minute), codes.Unauthenticated},
		{"no token at all", ztunnelCSR(t, id.String()), "x", codes.Unauthenticated},
		{"token of another domain", ztunnelCSR(t, id.String()), tokenFor(mustID(t, "spiffe://other.example/a"), time.Hour), codes.PermissionDenied},
		{"another's name", ztunnelCSR(t, "spiffe://cluster.local/ns/default/sa/admin"), tokenFor(id, time.Hour), codes.PermissionDenied},
		{"the CA's name", ztunnelCSR(t, a.ID().String()), tokenFor(a.ID(), time.Hour), codes.PermissionDenied},
		{"no CSR", "", tokenFor(id, time.Hour), codes.InvalidArgument},
		{"a CSR of 1 MiB", strings.Repeat("x", 1<<20), tokenFor(id, time.Hour), codes.ResourceExhausted},
	} {
		if chain, err := c.create(t.Context(), tc.csr, tc.token, 0); chain != nil || status.Code(err) != tc.want {
			t.Errorf("%s: %d certificates, %v, want %v", tc.name, len(chain), err, tc.want)
		}
	}
	if n := a.logs.count(id.String() + "|"); n != 0 {
		t.Errorf("the log has %d tokens: %s", n, a.logs)
	}
}

// A member gets its own name again with its certificate, and no other.
func TestEnrolByCertificate(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{Names: []string{"localhost"}})
	a.serve("")
	d := a.data.Load()
	client := func(ca *CA, change func(*leafSpec), more ...*CA) *istioClient {
		cert, _ := leaf(t, ca, change)
		for _, inter := range more {
			cert.Certificate = append(cert.Certificate, inter.cert.Raw)
		}
		conf := a.clientTLS()
		conf.Certificates = []tls.Certificate{cert}
		return newIstioClient(t, a.addr, conf)
	}
	csr := csrOf(t, newECKey(t, elliptic.P256()), nil)
	good := client(d.inter, func(s *leafSpec) { s.dns = []string{"web.example"} }, d.inter)
	chain, err := good.create(t.Context(), csr, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if c := verifyIssued(t, chain, encodeCert(d.root.cert.Raw)); len(c.DNSNames) != 1 || c.DNSNames[0] != "web.example" || c.URIs[0].String() != webID(t).String() {
		t.Errorf("the names are %v %v, want those of before", c.DNSNames, c.URIs)
	}
	if _, err := good.create(t.Context(), ztunnelCSR(t, "spiffe://cluster.local/ns/default/sa/admin"), "", 0); status.Code(err) != codes.PermissionDenied {
		t.Errorf("another's name: %v", err)
	}
	back := client(d.inter, func(s *leafSpec) { s.template.NotAfter = time.Now().Add(-time.Second) }, d.inter)
	if _, err := back.create(t.Context(), csr, "", 0); err != nil {
		t.Errorf("a certificate that has just expired: %v", err)
	}
	for name, c := range map[string]*istioClient{
		"expired long ago": client(d.inter, func(s *leafSpec) {
			s.template.NotBefore, s.template.NotAfter = time.Now().Add(-DefaultGrace-time.Hour), time.Now().Add(-DefaultGrace-time.Second)
		}, d.inter),
		"of another CA":  client(mustCA(t, testTD), nil),
		"another domain": client(d.root, func(s *leafSpec) { s.uris = []string{"spiffe://other.example/a"} }),
		"a CA":           client(d.root, func(s *leafSpec) { s.template.IsCA = true }),
		"for servers":    client(d.root, func(s *leafSpec) { s.template.ExtKeyUsage = s.template.ExtKeyUsage[:1] }),
	} {
		if chain, err := c.create(t.Context(), csr, "", 0); err == nil || len(chain) > 0 {
			t.Errorf("%s: %d certificates, %v", name, len(chain), err)
		}
	}
}

// GET /bundle and /crl are for everybody, by HTTP/1.1 and HTTP/2; all else is refused.
func TestServeFiles(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{Names: []string{"localhost"}})
	a.serve("")
	for _, proto := range []string{alpnH2, "http/1.1"} {
		conf := a.clientTLS()
		conf.NextProtos = []string{proto}
		tr := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: proto == alpnH2}
		client := &http.Client{Transport: tr}
		get := func(method, path string) (*http.Response, []byte) {
			req, err := http.NewRequestWithContext(t.Context(), method, "https://"+a.addr+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			return resp, body
		}
		resp, body := get(http.MethodGet, "/bundle")
		if want := map[string]int{alpnH2: 2, "http/1.1": 1}[proto]; resp.ProtoMajor != want {
			t.Errorf("%s: HTTP/%d", proto, resp.ProtoMajor)
		}
		var set map[string]any
		if err := json.Unmarshal(body, &set); err != nil || set["spiffe_refresh_hint"] != 300.0 || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: the bundle is %s, %v", proto, body, err)
		}
		_, body = get(http.MethodGet, "/crl")
		if block, _ := pem.Decode(body); block == nil || block.Type != "X509 CRL" {
			t.Errorf("%s: the CRL is %s", proto, body)
		}
		for want, r := range map[int][2]string{404: {http.MethodGet, "/ca.key"}, 405: {http.MethodPost, "/bundle"}} {
			if resp, _ := get(r[0], r[1]); resp.StatusCode != want {
				t.Errorf("%s: %v: %d, want %d", proto, r, resp.StatusCode, want)
			}
		}
		tr.CloseIdleConnections()
	}
}

// What connects and says nothing is ended, and more connections than a host may have are closed at once.
func TestConnectionsAreBounded(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	limited := newLimitListener(ln, 3, 2)
	accepted := make(chan net.Conn, 4)
	go func() { // ends with the listener, below
		for {
			nc, err := limited.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- nc
		}
	}()
	dial := func() net.Conn {
		nc, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = nc.Close() })
		return nc
	}
	dial()
	dial()
	first, second := <-accepted, <-accepted
	third := dial()
	_ = third.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := third.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the third connection of a host: %v, want its end", err)
	}
	_ = first.Close()
	_ = first.Close()
	dial()
	fourth := <-accepted
	_ = second.Close()
	_ = fourth.Close()
	limited.wait()
	_ = ln.Close()
	for nc := range accepted {
		t.Errorf("one more connection, %v", nc.RemoteAddr())
	}
	if len(limited.hosts) != 0 || limited.open != 0 {
		t.Errorf("%d hosts, %d connections at the end", len(limited.hosts), limited.open)
	}
}

// Whoever connects and says nothing, or stops in the middle of TLS, is ended.
func TestSilentConnectionsEnd(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	a := newAuthority(t, AuthorityConfig{})
	a.serve("")
	open := make(map[string]net.Conn)
	for name, says := range map[string]string{"nothing": "", "half a TLS record": "\x16\x03\x01\x02\x00\x01", "HTTP without TLS": "GET /bundle HTTP/1.1\r\n"} {
		nc, err := net.Dial("tcp", a.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if _, err := io.WriteString(nc, says); err != nil {
			t.Fatal(err)
		}
		open[name] = nc
	}
	for name, nc := range open {
		_ = nc.SetReadDeadline(time.Now().Add(caHandshakeTimeout + 20*time.Second))
		if answer, err := io.ReadAll(nc); errors.Is(err, os.ErrDeadlineExceeded) || len(answer) > 200 {
			t.Errorf("%s: %d bytes, %v, want the end", name, len(answer), err)
		}
	}
}

// BenchmarkCreateCertificate measures certificates a second for CSRs that are ready, on open connections: the server,
// the client and all that lies between.
func BenchmarkCreateCertificate(b *testing.B) {
	a := newAuthority(b, AuthorityConfig{Names: []string{"localhost"}, Tokens: workloadTokens})
	a.serve("")
	const clients = 16
	type member struct {
		*istioClient
		csr, token string
	}
	members := make(chan *member, clients)
	newMember := func(i int) *member {
		return &member{newIstioClient(b, a.addr, a.clientTLS()), csrOf(b, newECKey(b, elliptic.P256()), nil), tokenFor(mustIDOf(i), time.Hour)}
	}
	for i := range clients {
		m := newMember(i)
		if _, err := m.create(b.Context(), m.csr, m.token, 0); err != nil { // opens the connection
			b.Fatal(err)
		}
		members <- m
	}
	b.SetParallelism(clients / 2)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		m := <-members
		defer func() { members <- m }()
		for pb.Next() {
			if _, err := m.create(context.Background(), m.csr, m.token, 0); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "certs/s")
}

// BenchmarkSignCSR is the share of the CA alone.
func BenchmarkSignCSR(b *testing.B) {
	a := newAuthority(b, AuthorityConfig{})
	csr := csrOf(b, newECKey(b, elliptic.P256()), nil)
	n := 0
	for b.Loop() {
		if _, err := a.SignCSR(csr, Grant{ID: mustIDOf(n / 1000)}, 0); err != nil {
			b.Fatal(err)
		}
		n++
	}
}

// Only members may wait for changes, and no more of them than leaves room for others: the rest is answered at once.
func TestWaitingIsBounded(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{Names: []string{"localhost"}})
	a.serve("")
	member, err := newState(a.join(webID(t)), "", nil).load()
	if err != nil {
		t.Fatal(err)
	}
	ask := func(certs ...tls.Certificate) int {
		conf := a.clientTLS()
		conf.Certificates = certs
		tr := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		do := func(tag string) *http.Response {
			req, err := http.NewRequestWithContext(ctx, http.MethodHead, "https://"+a.addr+"/crl", nil)
			if err != nil {
				t.Fatal(err)
			}
			if tag != "" {
				req.Header.Set("If-None-Match", tag)
				req.Header.Set("Prefer", "wait=60")
			}
			resp, err := (&http.Client{Transport: tr}).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			return resp
		}
		return do(do("").Header.Get("ETag")).StatusCode
	}
	if got := ask(); got != http.StatusNotModified {
		t.Errorf("a stranger gets %d, want 304 at once", got)
	}
	a.waiting.Store(caMaxWaiting)
	if got := ask(member.Certificate); got != http.StatusNotModified {
		t.Errorf("a member that there is no room for gets %d, want 304 at once", got)
	}
	a.waiting.Store(0)
	got := make(chan int, 1)
	go func() { got <- ask(member.Certificate) }() // ends with its answer, which is waited for
	for a.waiting.Load() != 1 {
		select {
		case status := <-got:
			t.Fatalf("a member gets %d at once, and there was room to wait", status)
		case <-time.After(time.Millisecond):
		}
	}
	if _, err := a.Revoke(webID(t).String()); err != nil {
		t.Fatal(err)
	}
	if status := <-got; status != http.StatusOK {
		t.Errorf("a member that waited gets %d, want 200", status)
	}
	if n := a.waiting.Load(); n != 0 {
		t.Errorf("%d wait still", n)
	}
}
