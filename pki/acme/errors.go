package acme

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"

	xacme "golang.org/x/crypto/acme"
)

// ConfigError is a problem of a setting or of a file or folder that it names. Its text says what is wrong and what to
// do.
type ConfigError struct {
	Field  string // the field of Config as in the file, or "state" for the folder
	File   string // the file or folder, "" if the setting itself is the problem
	Detail string // what is wrong, in plain words
	Mend   string // what to do about it
	Err    error  // the cause, or nil
}

// Error returns "FIELD FILE: DETAIL: CAUSE; MEND".
func (e *ConfigError) Error() string {
	text := e.Field
	if e.File != "" {
		text += " " + e.File
	}
	text += ": " + e.Detail
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	if e.Mend != "" {
		text += "; " + e.Mend
	}
	return text
}

// Unwrap returns the cause.
func (e *ConfigError) Unwrap() error { return e.Err }

// Reason is a short fixed word for why there is no certificate for a handshake, fit for a metric label. Clients
// cannot choose its values.
type Reason string

// Reasons of a NameError.
const (
	NoName      Reason = "no-name"      // the client sent no server name
	UnknownName Reason = "unknown-name" // the name is not one of Config.Names
	NotIssued   Reason = "not-issued"   // there was no certificate for the name yet
	Expired     Reason = "expired"      // the certificate's time is over
	NoChallenge Reason = "no-challenge" // a validation (acme-tls/1) that nobody waits for
)

// NameError says why a handshake gets no certificate.
type NameError struct {
	Name     string    // as the client sent it, in lower case; anybody may have written it
	Reason   Reason    // why
	NotAfter time.Time // the end of the certificate if Reason is Expired
	Err      error     // why the last order failed, or nil
}

// Error returns what is wrong, with at most 100 bytes of the name.
func (e *NameError) Error() string {
	text := ""
	switch e.Reason {
	case NoName:
		return "no certificate: the client sent no server name"
	case UnknownName:
		return fmt.Sprintf("no certificate: %.100q is not one of the names of this gateway", e.Name)
	case NoChallenge:
		return fmt.Sprintf("no validation of %.100q is going on", e.Name)
	case Expired:
		text = fmt.Sprintf("the certificate for %.100q expired at %s", e.Name, e.NotAfter.UTC().Format(time.RFC3339))
	default:
		text = fmt.Sprintf("there is no certificate for %.100q yet", e.Name)
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns why the last order failed.
func (e *NameError) Unwrap() error { return e.Err }

// Step is where on its way an order failed, fit for a metric label.
type Step string

// Steps of an order.
const (
	StepLock        Step = "lock"        // being the one process that orders
	StepAccount     Step = "account"     // reaching the CA and having an account there
	StepRate        Step = "rate"        // staying within Config.OrdersPerHour
	StepOrder       Step = "order"       // having an order taken
	StepChallenge   Step = "challenge"   // showing control of the name
	StepCertificate Step = "certificate" // getting the certificate, and checking it
	StepKeep        Step = "keep"        // writing to the folder
)

// IssueError says why a certificate was not issued or kept.
type IssueError struct {
	Name       string        // the name it was for
	Step       Step          // where it failed
	Type       string        // the CA's problem type without its prefix, such as rateLimited (RFC 8555, section 6.7), or ""
	Detail     string        // what is wrong: the CA's words, at most 512 bytes, printable
	Mend       string        // what to do about it, or ""
	RetryAfter time.Duration // how long to wait at least, 0 if that is not known
	Err        error         // the cause, or nil
}

// Error returns "certificate for NAME: STEP: DETAIL (TYPE); MEND".
func (e *IssueError) Error() string {
	text := fmt.Sprintf("certificate for %s: %s: %s", e.Name, e.Step, e.Detail)
	if e.Type != "" {
		text += " (" + e.Type + ")"
	}
	if e.Mend != "" {
		text += "; " + e.Mend
	}
	return text
}

// Unwrap returns the cause.
func (e *IssueError) Unwrap() error { return e.Err }

const (
	// maxDetailBytes is how much of a CA's words an error holds.
	maxDetailBytes = 512
	// maxRetryAfter bounds how long a CA can make us wait: after a day the limit of any CA has moved on.
	maxRetryAfter = 24 * time.Hour
	// problemPrefix is before the types of RFC 8555, section 6.7.
	problemPrefix = "urn:ietf:params:acme:error:"
)

// explain makes an IssueError of what the ACME client returned.
func explain(name string, step Step, err error) *IssueError {
	if known, ok := errors.AsType[*IssueError](err); ok {
		return known
	}
	e := &IssueError{Name: name, Step: step, Err: err}
	problem := problemOf(err)
	switch {
	case problem != nil:
		e.Type = clean(strings.TrimPrefix(problem.ProblemType, problemPrefix), maxLabelBytes)
		detail := problem.Detail
		if len(problem.Subproblems) > 0 {
			detail += ": " + problem.Subproblems[0].Detail
		}
		e.Detail = clean(detail, maxDetailBytes)
		e.Mend = problemMend(e)
		if e.Type == "userActionRequired" && problem.Instance != "" {
			e.Mend += ": " + clean(problem.Instance, maxDetailBytes)
		}
		e.RetryAfter = retryAfter(problem)
	case errors.Is(err, context.DeadlineExceeded):
		e.Detail = "the CA took too long"
		e.Mend = "see whether the CA has a fault; it is asked again"
	default:
		e.Detail = clean(err.Error(), maxDetailBytes)
	}
	return e
}

// problemOf returns the problem document in an error of the ACME client, nil if there is none. Its errors for
// authorizations and orders hold one without unwrapping to it.
func problemOf(err error) *xacme.Error {
	if authz, ok := errors.AsType[*xacme.AuthorizationError](err); ok {
		for _, inner := range authz.Errors {
			if problem, ok := errors.AsType[*xacme.Error](inner); ok {
				return problem
			}
		}
	}
	if order, ok := errors.AsType[*xacme.OrderError](err); ok {
		return order.Problem
	}
	problem, _ := errors.AsType[*xacme.Error](err)
	return problem
}

// problemMend returns what an operator can do about a problem.
func problemMend(e *IssueError) string {
	switch e.Type {
	case "connection":
		return "let the CA reach " + e.Name + " on port 443 for tls-alpn-01 or port 80 for http-01"
	case "dns":
		return "give " + e.Name + " an A or AAAA record that leads to this gateway"
	case "unauthorized", "incorrectResponse", "tls":
		if e.Step == StepChallenge {
			return "something else than this gateway may answer there: see where the name's A and AAAA records and their ports 443 and 80 lead"
		}
		return "see whether the account was closed, and whether externalAccount is right"
	case "caa":
		return "let a CAA record of " + e.Name + " name this CA"
	case "rateLimited":
		return "wait; meanwhile use the CA's staging directory for tries"
	case "rejectedIdentifier":
		return "the CA does not issue for this name; take it out, or use another CA"
	case "externalAccountRequired":
		return "set externalAccount to the kid and key that the CA gave out"
	case "userActionRequired":
		return "agree to the CA's new terms"
	}
	return ""
}

// retryAfter returns how long the CA asks to wait, bounded.
func retryAfter(problem *xacme.Error) time.Duration {
	if problem.StatusCode != http.StatusServiceUnavailable && problem.StatusCode != http.StatusTooManyRequests || problem.Header == nil {
		return 0
	}
	return min(max(0, parseRetryAfter(problem.Header.Get("Retry-After"), time.Now())), maxRetryAfter)
}

// clean makes one printable line of at most limit bytes of a text that others wrote.
func clean(text string, limit int) string {
	if len(text) > limit {
		text = text[:limit] + "..."
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?")))
}
