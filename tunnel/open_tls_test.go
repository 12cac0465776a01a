package tunnel_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// webCA signs certificates of servers, and of their clients.
type webCA struct {
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	roots *x509.CertPool
}

func newWebCA(t *testing.T) *webCA {
	t.Helper()
	ca := &webCA{roots: x509.NewCertPool()}
	own := ca.issue(t, &x509.Certificate{IsCA: true, KeyUsage: x509.KeyUsageCertSign})
	ca.cert, ca.key = own.Leaf, own.PrivateKey.(*ecdsa.PrivateKey)
	ca.roots.AddCert(ca.cert)
	return ca
}

// issue makes a certificate of tmpl, valid in synthetic time too unless tmpl says otherwise.
func (ca *webCA) issue(t *testing.T, tmpl *x509.Certificate) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl.SerialNumber, tmpl.BasicConstraintsValid = big.NewInt(time.Now().UnixNano()), true
	if tmpl.NotBefore = time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC); tmpl.NotAfter.IsZero() {
		tmpl.NotAfter = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	parent, signer := ca.cert, ca.key
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// server is how a server of api.example, and of its address, speaks TLS.
func (ca *webCA) server(t *testing.T) *tls.Config {
	cert := ca.issue(t, &x509.Certificate{DNSNames: []string{"api.example"}, IPAddresses: []net.IP{net.ParseIP(publicAddr)}})
	return &tls.Config{Certificates: []tls.Certificate{*cert}}
}

// publicAddr is where servers are that an egress may reach.
const publicAddr = "198.41.0.4"

// newOrigin makes a gateway whose apps speak plain with servers that speak TLS by c. files is Env.OriginTLS.
func newOrigin(t *testing.T, c *tunnel.TLSConfig, files *tls.Config) (*memnet.Net, *tunnel.Gateway, *tunneltest.Log) {
	t.Helper()
	n, log := memnet.New(), &tunneltest.Log{}
	id := tunneltest.NewCA(t).Issue(t, "cluster.local", "default", "gw")
	g := tunneltest.NewGateway(t, n, "10.0.0.1", id, &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "apps", Kind: tunnel.KindSOCKS5, Address: "127.0.0.1:1080"}},
		Routes:    []tunnel.RouteConfig{{TLS: c}},
	}, nil, func(e *tunnel.Env) {
		e.OriginTLS = func(*tunnel.TLSConfig) (*tls.Config, error) {
			if files == nil {
				return nil, errors.New("the files are gone")
			}
			return files, nil
		}
	}, logTo(log))
	n.Name("api.example", netip.MustParseAddr(publicAddr))
	n.Name("other.example", netip.MustParseAddr(publicAddr))
	return n, g, log
}

// serveTLS serves TLS at the public address and hands each connection over, handshake done or not.
func serveTLS(t *testing.T, n *memnet.Net, conf *tls.Config, handle func(*tls.Conn)) {
	t.Helper()
	tunneltest.Serve(t, n, publicAddr+":443", func(c *memnet.Conn) {
		defer c.Close()
		handle(tls.Server(c, conf))
	})
}

// echoTLS returns what it is sent, and ends when the client does.
func echoTLS(c *tls.Conn) {
	if _, err := io.Copy(c, c); err == nil {
		_ = c.CloseWrite() // Close follows
	}
}

func TestTLSToTheDestination(t *testing.T) {
	ca := newWebCA(t)
	own := ca.issue(t, &x509.Certificate{DNSNames: []string{"client.example"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	files := &tls.Config{RootCAs: ca.roots}
	for _, tt := range []struct {
		name   string
		route  tunnel.TLSConfig
		files  *tls.Config
		server func(*tls.Config)
		target string
		cause  tunnel.Cause
		want   string // in the error
	}{
		{"by its name", tunnel.TLSConfig{}, files, nil, "api.example:443", tunnel.CauseNone, ""},
		{"by its address", tunnel.TLSConfig{}, files, nil, publicAddr + ":443", tunnel.CauseNone, ""},
		{"by another name", tunnel.TLSConfig{ServerName: "api.example"}, files, nil, "other.example:443", tunnel.CauseNone, ""},
		{"the wrong name", tunnel.TLSConfig{}, files, nil, "other.example:443", tunnel.CauseTLSCertificate, "not for other.example; if it is the right server, write"},
		{"an unknown CA", tunnel.TLSConfig{}, &tls.Config{RootCAs: x509.NewCertPool()}, nil, "api.example:443", tunnel.CauseTLSCertificate, "tls.roots"},
		{"expired", tunnel.TLSConfig{}, files, func(c *tls.Config) {
			c.Certificates = []tls.Certificate{*ca.issue(t, &x509.Certificate{DNSNames: []string{"api.example"}, NotAfter: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)})}
		}, "api.example:443", tunnel.CauseTLSCertificate, "not valid now"},
		{"for clients only", tunnel.TLSConfig{}, files, func(c *tls.Config) { c.Certificates = []tls.Certificate{*own} }, "client.example:443", tunnel.CauseTLSCertificate, "refused"},
		{"TLS 1.0", tunnel.TLSConfig{}, files, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, "api.example:443", tunnel.CauseTLSAlert, "tls.minVersion"},
		{"TLS 1.2", tunnel.TLSConfig{}, files, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, "api.example:443", tunnel.CauseNone, ""},
		{"TLS 1.2 is too old", tunnel.TLSConfig{MinVersion: "1.3"}, files, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, "api.example:443", tunnel.CauseTLSAlert, "tls.minVersion"},
		{"a protocol", tunnel.TLSConfig{ALPN: []string{"h2"}}, files, func(c *tls.Config) { c.NextProtos = []string{"http/1.1", "h2"} }, "api.example:443", tunnel.CauseNone, ""},
		{"another protocol", tunnel.TLSConfig{ALPN: []string{"h2"}}, files, func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} }, "api.example:443", tunnel.CauseTLSAlert, "tls.alpn"},
		{"no protocol", tunnel.TLSConfig{ALPN: []string{"h2"}}, files, nil, "api.example:443", tunnel.CauseTLS, "tls.alpn"},
		{"no protocol is HTTP/1.1", tunnel.TLSConfig{ALPN: []string{"http/1.1"}}, files, nil, "api.example:443", tunnel.CauseNone, ""},
		{"a client certificate", tunnel.TLSConfig{}, &tls.Config{RootCAs: ca.roots, Certificates: []tls.Certificate{*own}}, func(c *tls.Config) {
			c.ClientAuth, c.ClientCAs, c.MaxVersion = tls.RequireAndVerifyClientCert, ca.roots, tls.VersionTLS12
		}, "api.example:443", tunnel.CauseNone, ""},
		{"no client certificate", tunnel.TLSConfig{}, files, func(c *tls.Config) {
			c.ClientAuth, c.ClientCAs, c.MaxVersion = tls.RequireAndVerifyClientCert, ca.roots, tls.VersionTLS12
		}, "api.example:443", tunnel.CauseTLSAlert, "tls.cert"},
		{"no files", tunnel.TLSConfig{}, nil, nil, "api.example:443", tunnel.CauseConfiguration, "the files are gone"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, g, log := newOrigin(t, &tt.route, tt.files)
			n.Name("client.example", netip.MustParseAddr(publicAddr))
			conf := ca.server(t)
			if tt.server != nil {
				tt.server(conf)
			}
			serveTLS(t, n, conf, echoTLS)
			c, err := tunneltest.Dial(testContext(t), g, "apps", tt.target)
			if tunnel.CauseOf(err) != tt.cause || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("dial = %v (cause %v), want cause %v and %q", err, tunnel.CauseOf(err), tt.cause, tt.want)
			}
			if err == nil {
				wantEcho(t, c, "in the clear here")
			}
			g.Close()
			if tt.cause != tunnel.CauseNone && !strings.Contains(log.String(), "reason="+tt.cause.String()) {
				t.Errorf("the record does not say %v: %s", tt.cause, log)
			}
		})
	}
}

// What answers instead of TLS is told apart.
func TestTLSThatIsNone(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer func(*memnet.Conn)
		cause  tunnel.Cause
		want   string
	}{
		{"plain HTTP", func(c *memnet.Conn) {
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			io.Copy(io.Discard, c)
		}, tunnel.CauseTLS, "does not speak TLS on this port"},
		{"garbage", func(c *memnet.Conn) {
			c.Write([]byte{22, 3, 3, 0, 4, 0, 0, 0, 0})
			io.Copy(io.Discard, c)
		}, tunnel.CauseTLS, "TLS handshake"},
		{"half a record", func(c *memnet.Conn) { c.Write([]byte{22, 3, 3}) }, tunnel.CauseTLS, "ended the connection"},
		{"nothing", func(*memnet.Conn) {}, tunnel.CauseTLS, "ended the connection"},
		{"a reset", func(c *memnet.Conn) { c.SetLinger(0) }, tunnel.CauseTLS, "ended the connection"},
		{"silence", func(c *memnet.Conn) { io.Copy(io.Discard, c) }, tunnel.CauseTimeout, "TLS handshake"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, g, _ := newOrigin(t, &tunnel.TLSConfig{}, &tls.Config{})
				tunneltest.Serve(t, n, publicAddr+":443", func(c *memnet.Conn) {
					defer c.Close()
					tt.answer(c)
				})
				start := time.Now()
				_, err := tunneltest.Dial(t.Context(), g, "apps", "api.example:443")
				if tunnel.CauseOf(err) != tt.cause || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("dial = %v (cause %v), want cause %v and %q", err, tunnel.CauseOf(err), tt.cause, tt.want)
				}
				if took := time.Since(start); took > 5*time.Second {
					t.Errorf("it took %v, want the time for a handshake at most", took)
				}
				g.Close()
			})
		})
	}
}

// The server is asked for the name, and each side ends by itself.
func TestTLSHalfClose(t *testing.T) {
	ca := newWebCA(t)
	tail := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			n, g, _ := newOrigin(t, &tunnel.TLSConfig{}, &tls.Config{RootCAs: ca.roots})
			conf := ca.server(t)
			conf.MaxVersion = version
			asked := make(chan string, 1)
			serveTLS(t, n, conf, func(c *tls.Conn) {
				got, err := io.ReadAll(c)
				asked <- c.ConnectionState().ServerName
				if err != nil || !bytes.Equal(got, tail) {
					t.Errorf("the server has read %d bytes, %v, want %d and the end", len(got), err, len(tail))
				}
				c.Write(tail) // after the app's end
				c.CloseWrite()
			})
			c, err := tunneltest.Dial(testContext(t), g, "apps", "api.example:443")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.Write(tail)
			c.CloseWrite()
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, tail) {
				t.Errorf("the app has read %d bytes, %v, want %d and the end", len(got), err, len(tail))
			}
			if name := <-asked; name != "api.example" {
				t.Errorf("the server was asked for %q, want api.example", name)
			}
		})
	}
}

// A server that takes nothing for long gets all the same what was said before the end.
func TestTLSEndWaitsForRoom(t *testing.T) {
	ca := newWebCA(t)
	conf := ca.server(t)
	synctest.Test(t, func(t *testing.T) {
		n, g, _ := newOrigin(t, &tunnel.TLSConfig{}, &tls.Config{RootCAs: ca.roots})
		said := bytes.Repeat([]byte("x"), 4<<20)
		read := make(chan int, 1)
		serveTLS(t, n, conf, func(c *tls.Conn) {
			c.Handshake()
			time.Sleep(time.Minute)
			b, _ := io.ReadAll(c)
			read <- len(b)
			c.CloseWrite()
		})
		c, err := tunneltest.Dial(t.Context(), g, "apps", "api.example:443")
		if err != nil {
			t.Fatal(err)
		}
		go func() { // ends when all is written; the answer below comes after
			c.Write(said)
			c.CloseWrite()
		}()
		if _, err := io.ReadAll(c); err != nil {
			t.Errorf("the app's end: %v", err)
		}
		if n := <-read; n != len(said) {
			t.Errorf("the server has read %d bytes, want %d", n, len(said))
		}
		c.Close()
		g.Close()
	})
}

// A connection that ends without the word that TLS has for it was cut, and so does it look.
func TestTLSCutIsNoEnd(t *testing.T) {
	ca := newWebCA(t)
	n, g, log := newOrigin(t, &tunnel.TLSConfig{}, &tls.Config{RootCAs: ca.roots})
	serveTLS(t, n, ca.server(t), func(c *tls.Conn) {
		c.Write([]byte("half an ans"))
		c.NetConn().(*memnet.Conn).CloseWrite()
		io.Copy(io.Discard, c.NetConn())
	})
	c, err := tunneltest.Dial(testContext(t), g, "apps", "api.example:443")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); err == nil {
		t.Error("the app has read an end, want that the connection broke")
	}
	g.Close()
	if !strings.Contains(log.String(), "reason=destination-broke") {
		t.Errorf("the record: %s", log)
	}
}

// In TLS 1.3 a server refuses a client only after the handshake.
func TestTLSRefusalAfterTheHandshake(t *testing.T) {
	ca := newWebCA(t)
	n, g, log := newOrigin(t, &tunnel.TLSConfig{}, &tls.Config{RootCAs: ca.roots})
	conf := ca.server(t)
	conf.ClientAuth, conf.ClientCAs = tls.RequireAndVerifyClientCert, ca.roots
	serveTLS(t, n, conf, echoTLS)
	c, err := tunneltest.Dial(testContext(t), g, "apps", "api.example:443")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); err == nil {
		t.Error("the app has read an end, want that the connection broke")
	}
	g.Close()
	if !strings.Contains(log.String(), "certificate required") {
		t.Errorf("the record does not say why: %s", log)
	}
}

// TLS is spoken with the destination, through a tunnel where the route has hops.
func TestTLSThroughAHop(t *testing.T) {
	ca := newWebCA(t)
	p := tunneltest.NewPair(t, tunneltest.Options{
		Entry: func(c *tunnel.Config) { c.Routes[0].TLS = &tunnel.TLSConfig{} },
		EntryEnv: func(e *tunnel.Env) {
			e.OriginTLS = func(*tunnel.TLSConfig) (*tls.Config, error) { return &tls.Config{RootCAs: ca.roots}, nil }
		},
		Exit: func(c *tunnel.Config) { c.Routes = []tunnel.RouteConfig{{}} },
	})
	p.Net.Name("api.example", netip.MustParseAddr(publicAddr))
	p.Net.Name("other.example", netip.MustParseAddr(publicAddr))
	serveTLS(t, p.Net, ca.server(t), echoTLS)
	c, err := p.Dial(testContext(t), "api.example:443")
	if err != nil {
		t.Fatal(err)
	}
	wantEcho(t, c, "through a tunnel")
	if err := p.Refusal(testContext(t), "other.example:443"); tunnel.CauseOf(err) != tunnel.CauseTLSCertificate {
		t.Errorf("dial = %v, want that the certificate is not for the name", err)
	}
	c, err = p.Dial(testContext(t), "api.example:443")
	if err != nil {
		t.Fatal(err)
	}
	c.SetLinger(0)
	c.Close() // the app breaks off: so does the server's connection
	waitUntil(t, "the flow over", func() bool { return p.Exit.Stats().Active == 0 })
	waitUntil(t, "a record with the hop below TLS", func() bool {
		return strings.Contains(p.Log.String(), "host=api.example:443 hop=") && strings.Contains(p.Log.String(), " hop_id="+p.Exit.Self().String())
	})
}
