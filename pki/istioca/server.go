package istioca

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

const (
	// maxCalls is how many calls are served at once by default: many times what keeps all CPUs busy with signing, so
	// that nobody who is served waits long.
	maxCalls = 256
	// messageTimeout is how long a client may take for its message.
	messageTimeout = 10 * time.Second
	// maxTokenBytes bounds a bearer token; those of Kubernetes have about 1 KiB.
	maxTokenBytes = 16 << 10
)

// Call is one request for a certificate, and what is known of who asks.
type Call struct {
	CSR   string              // PEM, as it was sent
	TTL   time.Duration       // how long the certificate is wanted to be valid; 0: not said; negative: nonsense
	Token string              // the bearer token, "" if there is none
	Peer  []*x509.Certificate // the client certificates of the TLS connection, leaf first; verified by the TLS configuration
	Addr  string              // where the connection comes from, as host:port
}

// Sign gives a certificate: PEM, the leaf first, intermediates after it, the root last. It is called concurrently. ctx
// ends with the call. An *Error is told to the client as it is, any other as an internal error without its text.
type Sign func(ctx context.Context, call Call) (chain []string, err error)

// Server is the handler for CreateCertificate: an http.Handler for requests of HTTP/2 over TLS whose content type is
// application/grpc. Connections, their number and their handshakes are up to the http.Server that it is handed to.
type Server struct {
	// immutable after NewServer
	grpc     *grpc.Server
	sign     Sign
	patience time.Duration

	calls chan struct{} // a slot for each call that is served
}

// NewServer makes a Server that calls sign 256 times at once at most; for requests beyond, and there is no queue, the
// answer is ResourceExhausted.
func NewServer(sign Sign) *Server {
	s := &Server{
		grpc: grpc.NewServer(grpc.ForceServerCodecV2(codec{}), grpc.MaxRecvMsgSize(MaxMessageBytes), grpc.MaxSendMsgSize(MaxMessageBytes)),
		sign: sign, patience: messageTimeout, calls: make(chan struct{}, maxCalls),
	}
	s.grpc.RegisterService(&grpc.ServiceDesc{
		ServiceName: serviceName,
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: methodName, Handler: s.handle}},
	}, s)
	return s
}

// ServeHTTP serves one call. The client has ten seconds for its message.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.patience)) // HTTP/2 has deadlines for each stream
	s.grpc.ServeHTTP(w, r)
}

// handle is the method's handler for gRPC.
func (s *Server) handle(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	var req request
	if err := decode(&req); err != nil {
		return nil, err
	}
	call := Call{CSR: req.csr, TTL: req.ttl()}
	if p, ok := peer.FromContext(ctx); ok {
		call.Addr = p.Addr.String()
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			call.Peer = info.State.PeerCertificates
		}
	}
	var err error
	if call.Token, err = bearer(ctx); err != nil {
		return nil, err
	}
	select {
	case s.calls <- struct{}{}: // after the message is here: who is slow holds no place
		defer func() { <-s.calls }()
	default:
		return nil, (&Error{Code: ResourceExhausted, Detail: "too many calls at once"}).GRPCStatus().Err()
	}
	chain, err := s.sign(ctx, call)
	if err != nil {
		if told, ok := errors.AsType[*Error](err); ok {
			return nil, told.GRPCStatus().Err()
		}
		return nil, (&Error{Code: Internal, Detail: "the CA failed; its log has the reason"}).GRPCStatus().Err()
	}
	return &response{chain: chain}, nil
}

// bearer returns the token of a call's metadata (RFC 6750, section 2.1), "" if there is none.
func bearer(ctx context.Context) (string, error) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) == 0 {
		return "", nil
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if len(values) > 1 || !ok || !strings.EqualFold(scheme, "bearer") || token == "" || len(token) > maxTokenBytes {
		return "", (&Error{Code: Unauthenticated, Detail: "authorization must be one bearer token"}).GRPCStatus().Err()
	}
	return token, nil
}
