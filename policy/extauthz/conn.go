package extauthz

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"culvert/pki/spiffe"
)

// Env is what a Client gets from the process around it. Zero fields have the defaults named there.
type Env struct {
	// Log is told when an authorizer goes down and comes back. Default: nothing is logged.
	Log *slog.Logger
	// Dial connects; network is "tcp" or "unix". Default: the system's.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// ClientTLS returns the TLS configuration for a connection to an authorizer with that identity; zero is any with the trust
	// domain and namespace of this gateway. It is called for each connection. Required with mode mtls.
	ClientTLS func(id spiffe.ID) *tls.Config
}

// How connections are made and kept.
const (
	connectTime = 2 * time.Second // for a connection with TLS; questions wait less, and another attempt follows
	reconnect   = 100 * time.Millisecond
	// silence is how long a connection may say nothing while a question is under way before it is tested, and deadTime how long
	// what was sent may go without an acknowledgement (TCP_USER_TIMEOUT, on Linux): then it is dead, and is made again.
	silence  = 10 * time.Second // gRPC tests no earlier
	deadTime = 5 * time.Second

	streamWindow = 64 << 10 // RFC 9113, section 6.9.2; it does not grow, as an answer is no longer
	connWindow   = 1 << 20  // what answers that nobody has read yet hold together
	maxHeadBytes = 16 << 10 // of the header fields and trailers of an answer
	maxRootBytes = 1 << 20
)

// newConn makes the connection that cfg describes, which has been validated. It connects when it is used.
func newConn(cfg *Config, env Env) (*grpc.ClientConn, error) {
	network, host, _ := cfg.place() // cfg has been validated
	address, target := cfg.Address, cfg.Address
	if network == networkUnix {
		address, target = host, "localhost" // as of the scheme unix in gRPC
	}
	creds, err := credentialsOf(cfg, env, host)
	if err != nil {
		return nil, err
	}
	dial := env.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	backoffs := backoff.Config{BaseDelay: reconnect, Multiplier: 1.6, Jitter: 0.2, MaxDelay: restTime}
	conn, err := grpc.NewClient("passthrough:///"+target,
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx, network, address) }),
		grpc.WithNoProxy(),
		grpc.WithUserAgent("culvert"),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoffs, MinConnectTimeout: connectTime}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: silence, Timeout: deadTime}),
		grpc.WithIdleTimeout(0), // a question should not wait for a connection
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableHealthCheck(),
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(connWindow),
		grpc.WithMaxHeaderListSize(maxHeadBytes),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswerBytes), grpc.MaxCallSendMsgSize(maxAskBytes)),
	)
	if err != nil {
		return nil, &FieldError{Field: "address", What: fmt.Sprintf("%q cannot be used: %v", cut(cfg.Address), err), Err: err}
	}
	return conn, nil
}

// credentialsOf are what protects the connection.
func credentialsOf(cfg *Config, env Env, host string) (credentials.TransportCredentials, error) {
	switch cfg.TLS.Mode {
	case modeTLS:
		roots, err := cfg.TLS.readRoots()
		if err != nil {
			return nil, err
		}
		return credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: cmp.Or(cfg.TLS.ServerName, host), MinVersion: tls.VersionTLS12}), nil
	case modeMTLS:
		if env.ClientTLS == nil {
			return nil, errors.New("extauthz: mode mtls, and no identity (Env.ClientTLS)")
		}
		var id spiffe.ID
		if cfg.TLS.Identity != "" {
			var err error
			if id, err = spiffe.Parse(cfg.TLS.Identity); err != nil {
				return nil, err
			}
		}
		return &meshTLS{id: id, config: env.ClientTLS}, nil
	}
	return insecure.NewCredentials(), nil
}

// readRoots reads Roots; nil for none is the system's.
func (t *TLSConfig) readRoots() (*x509.CertPool, error) {
	roots, err := readRoots(t.Roots)
	if err != nil {
		return nil, &FieldError{Field: "tls.roots", What: err.Error(), Err: err}
	}
	return roots, nil
}

func readRoots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxRootBytes+1))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	switch {
	case len(text) > maxRootBytes:
		return nil, fmt.Errorf("%s is longer than %d bytes; it should be a file of certificates", file, maxRootBytes)
	case !roots.AppendCertsFromPEM(text):
		return nil, fmt.Errorf("%s has no certificate in it; it should be PEM, with BEGIN CERTIFICATE", file)
	}
	return roots, nil
}

// meshTLS is TLS with an identity of the mesh on both sides, which may be another one for each connection.
type meshTLS struct {
	id     spiffe.ID
	config func(spiffe.ID) *tls.Config
}

// ClientHandshake authenticates the authorizer on nc. It sends no server name, as between gateways.
func (m *meshTLS) ClientHandshake(ctx context.Context, _ string, nc net.Conn) (net.Conn, credentials.AuthInfo, error) {
	tc := tls.Client(nc, m.config(m.id))
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = nc.Close() // the handshake has failed, and says why
		return nil, nil, err
	}
	return tc, credentials.TLSInfo{State: tc.ConnectionState(), CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
}

// ServerHandshake is not for clients.
func (m *meshTLS) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("extauthz: not a server")
}

// Info describes the protocol.
func (m *meshTLS) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone returns a copy.
func (m *meshTLS) Clone() credentials.TransportCredentials { return &meshTLS{m.id, m.config} }

// OverrideServerName does nothing: names do not identify anybody in the mesh.
func (m *meshTLS) OverrideServerName(string) error { return nil }
