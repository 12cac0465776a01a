package istioca

import (
	"context"
	"crypto/tls"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
)

// connectTimeout is how long a client tries to connect, TLS included, unless its context ends before.
const connectTimeout = 10 * time.Second

// ClientConfig says where a CA is and how a client shows who it is.
type ClientConfig struct {
	// Address is host:port of the CA.
	Address string
	// TLS verifies the CA, and has the client's certificate if there is one. It is cloned.
	TLS *tls.Config
	// Token returns the bearer token of a call; nil or "": none is sent.
	Token func(context.Context) (string, error)
}

// Client asks a CA for certificates over one connection, made with the first call and again if it is lost. It may be
// used concurrently. Close ends it.
type Client struct {
	conn  *grpc.ClientConn
	addr  string
	token func(context.Context) (string, error)

	mu      sync.Mutex
	refused error // guarded by mu: why the last connection's server was refused, nil if it was not
}

// NewClient makes a client and does not connect yet. The error says what is wrong with the address.
func NewClient(cfg ClientConfig) (*Client, error) {
	c := &Client{addr: cfg.Address, token: cfg.Token}
	conf := cfg.TLS.Clone()
	verify := conf.VerifyConnection
	conf.VerifyConnection = func(cs tls.ConnectionState) (err error) {
		if verify != nil {
			err = verify(cs)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.refused = err
		return err
	}
	conn, err := grpc.NewClient("passthrough:///"+cfg.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(conf)),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(MaxMessageBytes), grpc.MaxCallSendMsgSize(MaxMessageBytes)),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: connectTimeout}),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithNoProxy())
	if err != nil {
		return nil, fmt.Errorf("the CA at %q: %w", cfg.Address, err)
	}
	c.conn = conn
	return c, nil
}

// CreateCertificate asks for a certificate for a CSR in PEM, valid for ttl if the CA agrees (0: as it thinks right), and
// returns what it gives: PEM, leaf first, root last; nothing of it is checked. It blocks until the answer is there or
// ctx ends. The error is an *Error, which wraps what TLS.VerifyConnection said if that refused the CA. It is not tried
// again by itself.
func (c *Client) CreateCertificate(ctx context.Context, csrPEM string, ttl time.Duration) ([]string, error) {
	if c.token != nil {
		token, err := c.token(ctx)
		if err != nil {
			return nil, &Error{Code: Unauthenticated, Detail: "no token", Err: err}
		}
		if token != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
		}
	}
	var resp response
	err := c.conn.Invoke(ctx, fullMethod, &request{csr: csrPEM, seconds: int64(ttl / time.Second)}, &resp)
	if err == nil {
		return resp.chain, nil
	}
	told := fromStatus(err)
	if told.Code == Unavailable {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.refused != nil {
			return nil, &Error{Code: Unavailable, Detail: "the CA at " + c.addr + " is refused", Err: c.refused}
		}
		if c.conn.GetState() == connectivity.TransientFailure { // it is us who say so
			told.Detail = "no CA answers at " + c.addr + "; see whether one runs there, such as gateway ca serve, and whether a firewall is between: " + told.Detail
		}
	}
	return nil, told
}

// Close ends the connection, and calls that are under way with it.
func (c *Client) Close() error { return c.conn.Close() }
