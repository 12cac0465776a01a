package bearer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

const (
	// maxAnswerBytes bounds the answer of a provider, and maxHeaderBytes its header.
	maxAnswerBytes = 64 << 10
	maxHeaderBytes = 32 << 10
	// maxCABytes bounds CAFile.
	maxCABytes = 1 << 20
)

// fetch asks the provider for a token, which it returns with its end.
func (o *OIDCConfig) fetch(ctx context.Context, env *Env) (token string, until time.Time, err error) {
	req, err := o.request(ctx)
	if err != nil {
		return "", until, err
	}
	client, err := o.client(env)
	if err != nil {
		return "", until, err
	}
	asked := time.Now()
	res, err := client.Do(req)
	if err != nil {
		return "", until, cause(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswerBytes+1))
	switch {
	case err != nil:
		return "", until, cause(err)
	case len(body) > maxAnswerBytes:
		return "", until, fmt.Errorf("the answer is longer than %d bytes", maxAnswerBytes)
	case res.StatusCode != http.StatusOK:
		return "", until, fmt.Errorf("the provider answered %d%s", res.StatusCode, refusalOf(body))
	}
	return readAnswer(body, asked)
}

// request makes the request for a token (RFC 6749, section 4.4.2).
func (o *OIDCConfig) request(ctx context.Context) (*http.Request, error) {
	id := o.ID
	if o.IDFile != "" {
		var err error
		if id, err = readFile(o.IDFile); err != nil {
			return nil, err
		}
	}
	secret, err := readFile(o.SecretFile)
	if err != nil {
		return nil, err
	}
	form := url.Values{"grant_type": {"client_credentials"}}
	if o.Scope != "" {
		form.Set("scope", o.Scope)
	}
	if o.Audience != "" {
		form.Set("audience", o.Audience)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.TokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth(url.QueryEscape(id), url.QueryEscape(secret)) // RFC 6749, section 2.3.1: both are form-encoded first
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	return req, nil
}

// client makes the client of one request. Redirects are not followed: they would take the secret along.
func (o *OIDCConfig) client(env *Env) (*http.Client, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		f, err := os.Open(o.CAFile)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		data, err := io.ReadAll(io.LimitReader(f, maxCABytes))
		if err != nil {
			return nil, err
		}
		if conf.RootCAs = x509.NewCertPool(); !conf.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("%s: there is no certificate in it", o.CAFile)
		}
	}
	return &http.Client{
		Transport: &http.Transport{
			DialContext: env.DialContext, TLSClientConfig: conf, DisableCompression: true, DisableKeepAlives: true,
			MaxResponseHeaderBytes: maxHeaderBytes,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// cause is err without the address, which the caller names.
func cause(err error) error {
	var of *url.Error
	if errors.As(err, &of) {
		return of.Err
	}
	return err
}

// readAnswer reads a provider's answer (RFC 6749, section 5.1).
func readAnswer(body []byte, asked time.Time) (token string, until time.Time, err error) {
	var answer struct {
		AccessToken string      `json:"access_token"`
		TokenType   string      `json:"token_type"`
		ExpiresIn   json.Number `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return "", until, errors.New("the answer is not the JSON that it should be (RFC 6749, section 5.1)")
	}
	if answer.TokenType != "" && !strings.EqualFold(answer.TokenType, "Bearer") {
		return "", until, errors.New("the token is of another type than Bearer")
	}
	if answer.AccessToken == "" {
		return "", until, errors.New("the answer has no access_token")
	}
	if what := tokenProblem(answer.AccessToken); what != "" {
		return "", until, errors.New("the access_token " + what)
	}
	until = asked.Add(unknownLife)
	if seconds, err := answer.ExpiresIn.Int64(); err == nil && seconds > 0 {
		until = asked.Add(time.Duration(min(seconds, int64(longestLife/time.Second))) * time.Second)
	} else if exp, ok := endOf(answer.AccessToken); ok {
		until = exp
	}
	if !until.After(asked) {
		return "", until, errors.New("the token has ended already; do the clocks agree?")
	}
	return answer.AccessToken, until, nil
}

// endOf is exp of a JWT, which nobody here has verified: who is shown the token does.
func endOf(token string) (time.Time, bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}, false
	}
	data, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}, false
	}
	var claims struct {
		Exp json.Number `json:"exp"`
	}
	if json.Unmarshal(data, &claims) != nil {
		return time.Time{}, false
	}
	exp, err := claims.Exp.Int64()
	return time.Unix(exp, 0), err == nil
}

// refusalOf is what a provider says of why (RFC 6749, section 5.2), as far as it is one of the words that stand there.
func refusalOf(body []byte) string {
	var answer struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return ""
	}
	switch answer.Error {
	case "invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope":
		return ": " + answer.Error
	}
	return ""
}
