package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	// maxConns bounds the connections of all programs of the host, and maxConnsPerUser keeps one user from taking all.
	maxConns        = 1024
	maxConnsPerUser = maxConns / 4
	// maxStreams is for one connection: a program has three streams at most, two of bundles and one of SVIDs.
	maxStreams = 32
	// maxMessageBytes bounds what a program sends: a JWT-SVID to validate, or audiences.
	maxMessageBytes = 64 << 10
	// maxAudiences and maxAudienceBytes bound what is asked to be signed.
	maxAudiences     = 16
	maxAudienceBytes = 1 << 10
	// handshakeTimeout is for the preface of HTTP/2.
	handshakeTimeout = 5 * time.Second
	// idleTimeout ends connections on which nothing is asked for.
	idleTimeout = 5 * time.Minute
	// retryInterval is how long a stream waits after an SVID could not be issued in time for its renewal.
	retryInterval = 5 * time.Second
	// shutdownTimeout is for calls that are under way at the end; streams have none.
	shutdownTimeout = time.Second
)

// X509SVID is an identity with its key.
type X509SVID struct {
	ID       string
	Chain    []byte    // DER, leaf first, one after another
	Key      []byte    // DER, PKCS #8
	Renew    time.Time // when the next one is to be issued
	NotAfter time.Time
	Revoked  func() bool // reports whether it is not to be used any more; nil: it always is
}

// ErrRevoked is what an Issuer returns for an identity that gets nothing any more.
var ErrRevoked = errors.New("the identity was revoked")

// Bundle is what SVIDs of a trust domain are verified with.
type Bundle struct {
	TrustDomain string   // as a SPIFFE ID, spiffe://cluster.local
	Roots       []byte   // DER, one after another
	JWKS        []byte   // the keys of JWT-SVIDs, JSON
	CRLs        [][]byte // DER
}

// Issuer signs SVIDs. Its methods are called concurrently.
type Issuer interface {
	// IssueX509 makes a key and has a certificate signed for it.
	IssueX509(ctx context.Context, id string) (*X509SVID, error)
	// IssueJWTSVID signs a JWT-SVID.
	IssueJWTSVID(ctx context.Context, id string, audiences []string) (string, error)
	// ValidateJWTSVID checks a JWT-SVID, and returns its identity and its claims, JSON. The error is told to the program.
	ValidateJWTSVID(ctx context.Context, token, audience string) (id string, claims []byte, err error)
	// Bundle returns the current bundle, and a channel that is closed when there is another.
	Bundle() (Bundle, <-chan struct{})
}

// Config says where a Server listens and who gets what.
type Config struct {
	// Path is the Unix socket. A socket that is there already, and that nobody serves, is removed.
	Path string
	// Entries say which process gets which identity. A process gets all whose conditions it meets.
	Entries []Entry
	// Issuer signs.
	Issuer Issuer
	// Log gets one line for each process that is refused.
	Log *slog.Logger
}

// Server is a Workload API. Serve runs it.
type Server struct {
	workload.UnimplementedSpiffeWorkloadAPIServer

	// immutable after Listen
	cfg  Config
	ln   *listener
	grpc *grpc.Server

	stop chan struct{} // closed when Serve ends: ends the streams

	mu    sync.Mutex
	svids map[string]*cachedSVID // guarded by mu: by identity, one for each of Entries at most
}

// cachedSVID is the SVID that all processes of an identity share, until it is renewed.
type cachedSVID struct {
	mu   sync.Mutex // held while the next one is issued
	svid *X509SVID  // guarded by mu
}

// Listen opens the socket, which everybody on the host may connect to. Errors say what is wrong with the path or the
// entries, or that this system cannot tell who is at the other end of a socket.
func Listen(cfg Config) (*Server, error) {
	if err := checkEntries(cfg.Entries); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(cfg.Path) {
		return nil, fmt.Errorf("the path of the Workload API, %q, must be absolute, as SPIFFE_ENDPOINT_SOCKET has it", cfg.Path)
	}
	ln, err := listen(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("open the Workload API's socket: %w", err)
	}
	s := &Server{cfg: cfg, ln: ln, stop: make(chan struct{}), svids: make(map[string]*cachedSVID)}
	s.grpc = grpc.NewServer(grpc.Creds(attestation{}), grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxRecvMsgSize(maxMessageBytes), grpc.ConnectionTimeout(handshakeTimeout), grpc.MaxHeaderListSize(16<<10),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleTimeout}),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := checkHeader(ctx); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := checkHeader(stream.Context()); err != nil {
				return err
			}
			return next(srv, stream)
		}))
	workload.RegisterSpiffeWorkloadAPIServer(s.grpc, s)
	return s, nil
}

// Serve serves until ctx ends, then ends all streams, removes the socket and returns nil. It is called once.
func (s *Server) Serve(ctx context.Context) error {
	served := make(chan error, 1)
	// Ends with Stop; waited for below.
	go func() { served <- s.grpc.Serve(s.ln) }()
	var err error
	select {
	case err = <-served:
		close(s.stop)
		s.grpc.Stop()
		return err
	case <-ctx.Done():
	}
	close(s.stop)
	ended := make(chan struct{})
	// Ends when the calls have, or with Stop; waited for below.
	go func() { s.grpc.GracefulStop(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(shutdownTimeout):
		s.grpc.Stop()
		<-ended
	}
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// checkHeader wants the header that no browser and no proxy of HTTP sends by itself (SPIFFE Workload Endpoint, section 4):
// "servers MUST reject" calls without it, with InvalidArgument.
func checkHeader(ctx context.Context) error {
	if values := metadata.ValueFromIncomingContext(ctx, "workload.spiffe.io"); len(values) != 1 || values[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing from request: workload.spiffe.io: true")
	}
	return nil
}

// entitled returns the identities of the process that calls. SPIFFE Workload API, section 4.1: who has none gets
// PermissionDenied.
func (s *Server) entitled(ctx context.Context) ([]Entry, error) {
	process, err := caller(ctx)
	if err != nil {
		s.cfg.Log.Warn("workload refused", "reason", "not attested", "err", err)
		return nil, status.Error(codes.PermissionDenied, "this process cannot be attested")
	}
	var found []Entry
	for _, e := range s.cfg.Entries {
		if e.matches(process) {
			found = append(found, e)
		}
	}
	if len(found) == 0 {
		s.cfg.Log.Warn("workload refused", "reason", "no entry", "src", process.String())
		return nil, status.Error(codes.PermissionDenied, "no identity issued")
	}
	return found, nil
}

// FetchX509SVID sends the SVIDs of the calling process, and again when one of them or the bundle is renewed.
func (s *Server) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	return s.push(stream.Context(), func(ctx context.Context, bundle Bundle) (again time.Time, err error) {
		entries, err := s.entitled(ctx)
		if err != nil {
			return again, err
		}
		resp := &workload.X509SVIDResponse{Crl: bundle.CRLs}
		for _, e := range entries {
			svid, err := s.svid(ctx, e.ID)
			if errors.Is(err, ErrRevoked) {
				s.cfg.Log.Warn("workload refused", "reason", "revoked", "id", e.ID)
				return again, status.Error(codes.PermissionDenied, "no identity issued")
			}
			if err != nil {
				s.cfg.Log.Error("workload's identity not issued", "id", e.ID, "err", err)
				return again, status.Error(codes.Unavailable, "the identity cannot be issued now")
			}
			if again.IsZero() || svid.Renew.Before(again) {
				again = svid.Renew
			}
			resp.Svids = append(resp.Svids, &workload.X509SVID{SpiffeId: svid.ID, X509Svid: svid.Chain, X509SvidKey: svid.Key, Bundle: bundle.Roots})
		}
		if now := time.Now(); !again.After(now) { // a renewal that failed
			again = now.Add(retryInterval)
		}
		return again, stream.Send(resp)
	})
}

// FetchX509Bundles sends the roots and the CRLs, and again when they change.
func (s *Server) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	return s.push(stream.Context(), func(ctx context.Context, b Bundle) (again time.Time, err error) {
		if _, err := s.entitled(ctx); err != nil {
			return again, err
		}
		return again, stream.Send(&workload.X509BundlesResponse{Crl: b.CRLs, Bundles: map[string][]byte{b.TrustDomain: b.Roots}})
	})
}

// FetchJWTBundles sends the keys of JWT-SVIDs, and again when they change.
func (s *Server) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	return s.push(stream.Context(), func(ctx context.Context, b Bundle) (again time.Time, err error) {
		if _, err := s.entitled(ctx); err != nil {
			return again, err
		}
		return again, stream.Send(&workload.JWTBundlesResponse{Bundles: map[string][]byte{b.TrustDomain: b.JWKS}})
	})
}

// push calls send now, at the time that it returns, and when the bundle changes, until ctx or the server ends.
func (s *Server) push(ctx context.Context, send func(context.Context, Bundle) (again time.Time, err error)) error {
	for {
		bundle, changed := s.cfg.Issuer.Bundle()
		again, err := send(ctx, bundle)
		if err != nil {
			return err
		}
		var due <-chan time.Time
		if !again.IsZero() {
			due = time.After(time.Until(again))
		}
		select {
		case <-due:
		case <-changed:
		case <-s.stop:
			return status.Error(codes.Unavailable, "the Workload API ends")
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

// svid returns the current SVID of an identity, and issues one if there is none or its time for renewal has come. If
// that fails, the old one serves as long as it is valid.
func (s *Server) svid(ctx context.Context, id string) (*X509SVID, error) {
	s.mu.Lock()
	c := s.svids[id]
	if c == nil {
		c = new(cachedSVID)
		s.svids[id] = c
	}
	s.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.svid != nil && c.svid.Revoked != nil && c.svid.Revoked() {
		c.svid = nil
	}
	if c.svid != nil && now.Before(c.svid.Renew) {
		return c.svid, nil
	}
	next, err := s.cfg.Issuer.IssueX509(ctx, id)
	switch {
	case err == nil:
		c.svid = next
	case c.svid == nil || !now.Before(c.svid.NotAfter):
		return nil, err
	default:
		s.cfg.Log.Warn("workload's identity not renewed, the old one serves", "id", id, "not_after", c.svid.NotAfter, "err", err)
	}
	return c.svid, nil
}

// listener limits the connections of all and of one user, and removes the socket at its end.
type listener struct {
	*net.UnixListener
	path string

	mu    sync.Mutex
	open  int            // guarded by mu
	users map[uint32]int // guarded by mu
}

// listen opens a Unix socket. A file that is there and is no socket is left alone.
func listen(path string) (*listener, error) {
	if err := canAttest(); err != nil {
		return nil, err
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("%s is there and is no socket", path)
		}
		nc, err := net.Dial("unix", path)
		if err == nil {
			_ = nc.Close() // only to see whether somebody serves it
			return nil, fmt.Errorf("%s is served already", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	// Whoever may not have an identity is refused by what they are, not by the mode of the socket.
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return &listener{UnixListener: ln, path: path, users: make(map[uint32]int)}, nil
}

// Accept returns the next connection that is within the limits.
func (l *listener) Accept() (net.Conn, error) {
	for {
		nc, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		p, err := peerOf(nc)
		if err != nil || !l.take(p.uid) {
			_ = p.close()
			_ = nc.Close() // it was never ours
			continue
		}
		return &conn{UnixConn: nc, peer: p, list: l}, nil
	}
}

func (l *listener) take(uid uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= maxConns || l.users[uid] >= maxConnsPerUser {
		return false
	}
	l.open++
	l.users[uid]++
	return true
}

func (l *listener) give(uid uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.users[uid]--; l.users[uid] == 0 {
		delete(l.users, uid)
	}
}

// conn is a connection of a process that the system has named.
type conn struct {
	*net.UnixConn
	peer *peer
	list *listener
	once sync.Once
	err  error // guarded by once
}

// Close closes the connection and gives its place back.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.err = errors.Join(c.UnixConn.Close(), c.peer.close())
		c.list.give(c.peer.uid)
	})
	return c.err
}
