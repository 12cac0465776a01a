package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	xacme "golang.org/x/crypto/acme"
)

// maxAuthorizations is how many authorizations an order for one name may have. CAs have one.
const maxAuthorizations = 4

// renew gets, uses and keeps a new certificate for e. fresh says whether it got one.
func (m *Manager) renew(ctx context.Context, e *entry) (fresh bool, fault *IssueError) {
	if k := e.cert.Load(); e.unsaved == nil || k == nil || !time.Now().Before(k.renewAt) {
		ctx, cancel := context.WithTimeout(ctx, m.timing.orderLimit)
		defer cancel()
		if fault := m.order(ctx, e); fault != nil {
			if fault.Step == StepChallenge {
				e.turn++
			}
			return false, fault
		}
		fresh = true
	}
	// It is in use already. If it cannot be kept, the next try does no more than that.
	if err := writeFile(m.store.certPath(e.name), e.unsaved); err != nil {
		return fresh, &IssueError{Name: e.name, Step: StepKeep, Err: err, Detail: err.Error() + " (it is used, and lost with the next start)",
			Mend: "let the gateway write to the folder, and see whether its file system is full"}
	}
	e.unsaved = nil
	return fresh, nil
}

// order gets a certificate for e from the CA and puts it into use.
func (m *Manager) order(ctx context.Context, e *entry) *IssueError {
	c := m.newClient()
	if _, err := c.Discover(ctx); err != nil {
		return explain(e.name, StepAccount, err)
	}
	if err := m.signIn(ctx, c); err != nil {
		return explain(e.name, StepAccount, err)
	}
	if fault := m.countOrder(e); fault != nil {
		return fault
	}
	o, err := m.newOrder(ctx, c, e.name)
	if err != nil {
		return explain(e.name, StepOrder, err)
	}
	for _, url := range o.AuthzURLs {
		if err := m.authorize(ctx, c, e, url); err != nil {
			return explain(e.name, StepChallenge, err)
		}
	}
	key, chain, err := certificate(ctx, c, o, e.name)
	if err != nil {
		return explain(e.name, StepCertificate, err)
	}
	leaf, err := checkChain(chain, e.name, key.Public(), time.Now())
	if err != nil {
		return explain(e.name, StepCertificate, fmt.Errorf("the CA's certificate is refused: %w", err))
	}
	if e.unsaved, err = encodePair(key, chain); err != nil {
		return explain(e.name, StepCertificate, err)
	}
	m.use(e, m.keep(&tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}, nil))
	return nil
}

// countOrder notes that an order is about to be made, and refuses it if there were too many.
func (m *Manager) countOrder(e *entry) *IssueError {
	wait, err := m.orders.take(e.name, time.Now())
	switch {
	case err != nil:
		return &IssueError{Name: e.name, Step: StepKeep, Detail: "no order is made that cannot be counted: " + err.Error(), Err: err,
			Mend: "let the gateway write to the folder, and see whether its file system is full"}
	case wait > 0:
		last := m.lastError(e)
		if before, ok := errors.AsType[*IssueError](last); ok && before.Step == StepRate {
			last = before.Err
		}
		detail := fmt.Sprintf("%d orders were made within an hour", m.cfg.ordersPerHour())
		if last != nil {
			detail += "; the last one: " + last.Error()
		}
		return &IssueError{Name: e.name, Step: StepRate, Detail: detail, RetryAfter: wait, Err: last}
	}
	return nil
}

// newOrder makes an order for name (RFC 8555, section 7.4). If the CA has forgotten the account, it is made anew.
func (m *Manager) newOrder(ctx context.Context, c *xacme.Client, name string) (*xacme.Order, error) {
	var opts []xacme.OrderOption
	if m.cfg.Profile != "" {
		opts = append(opts, xacme.WithOrderIssuanceProfile(xacme.ProfileName(m.cfg.Profile)))
	}
	o, err := c.AuthorizeOrder(ctx, xacme.DomainIDs(name), opts...)
	if problem := problemOf(err); problem != nil && problem.ProblemType == problemPrefix+"accountDoesNotExist" {
		m.log.Warn("the CA does not know the ACME account any more, asking anew", "account", string(c.KID))
		if err := m.forgetAccount(ctx, string(c.KID)); err != nil {
			return nil, err
		}
		if err := m.signIn(ctx, c); err != nil {
			return nil, err
		}
		o, err = c.AuthorizeOrder(ctx, xacme.DomainIDs(name), opts...)
	}
	switch {
	case err != nil:
		return nil, err
	case o.URI == "":
		return nil, errors.New("the CA named no URL for the order")
	case len(o.AuthzURLs) > maxAuthorizations:
		return nil, fmt.Errorf("the CA wants %d authorizations for one name, more than %d", len(o.AuthzURLs), maxAuthorizations)
	}
	return o, nil
}

// authorize shows control of a name (RFC 8555, section 7.5).
func (m *Manager) authorize(ctx context.Context, c *xacme.Client, e *entry, url string) error {
	z, err := c.GetAuthorization(ctx, url)
	if err != nil {
		return err
	}
	// An answer is good for whatever name the CA looks at: none is given for another than ours.
	if z.Identifier.Type != "dns" || lowerASCII(z.Identifier.Value) != e.name || z.Wildcard {
		return fmt.Errorf("the CA wants control of another name, %.100q, to be shown", z.Identifier.Value)
	}
	switch z.Status {
	case xacme.StatusValid:
		return nil
	case xacme.StatusPending:
	default:
		return fmt.Errorf("the authorization is %.100q before anything was asked", z.Status)
	}
	ch, err := pickChallenge(z.Challenges, m.preferred(e))
	if err != nil {
		return err
	}
	remove, err := m.answers.put(c, e.name, ch)
	if err != nil {
		return err
	}
	defer remove()
	if _, err := c.Accept(ctx, ch); err != nil {
		return err
	}
	if _, err := c.WaitAuthorization(ctx, url); err != nil {
		fault := explain(e.name, StepChallenge, err)
		fault.Detail = ch.Type + ": " + fault.Detail
		return fault
	}
	return nil
}

// preferred returns the challenges in the order in which they are to be tried now: with each failure another first.
func (m *Manager) preferred(e *entry) []string {
	types := m.cfg.challenges()
	turn := e.turn % len(types)
	return slices.Concat(types[turn:], types[:turn])
}

// certificate makes a key and has the CA sign it (RFC 8555, section 7.4).
func certificate(ctx context.Context, c *xacme.Client, o *xacme.Order, name string) (*ecdsa.PrivateKey, [][]byte, error) {
	ready, err := c.WaitOrder(ctx, o.URI)
	if err != nil {
		return nil, nil, err
	}
	if ready.Status != xacme.StatusReady {
		return nil, nil, fmt.Errorf("the order is %.100q before a key was sent", ready.Status)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{name}}, key)
	if err != nil {
		return nil, nil, err
	}
	chain, _, err := c.CreateCertFromOrder(ctx, ready, csr, true)
	return key, chain, err
}
