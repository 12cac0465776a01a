package sshkeys

import (
	"fmt"
	"strings"
	"unicode"
)

// Reason is a short fixed word for why a line or a key is refused, fit for a metric label and for comparing. Peers
// cannot choose its values.
type Reason string

// Reasons of a LineError.
const (
	Unreadable Reason = "unreadable" // the file cannot be read, or is no regular file
	OpenFile   Reason = "open-file"  // others than its owner may write the file
	TooBig     Reason = "too-big"    // the file or a line is too long
	TooMany    Reason = "too-many"   // more lines, or more bad lines, than are looked at
	BadFormat  Reason = "bad-format" // the line is none of its file's format
	BadOption  Reason = "bad-option" // an option that is unknown, wrong or cannot be kept; also of a certificate
	WeakKey    Reason = "weak-key"   // DSA, RSA below 2048 bits, or a signature with SHA-1; also of a RefusedError
)

// Reasons of a RefusedError.
const (
	UnknownKey   Reason = "unknown-key"   // no line has the key
	UnknownCA    Reason = "unknown-ca"    // no cert-authority line has the key that signed the certificate
	UnknownHost  Reason = "unknown-host"  // no line has a key for the host
	ChangedKey   Reason = "changed-key"   // the host's lines have other keys
	Revoked      Reason = "revoked"       // a line revokes the key, or the CA of the certificate
	Expired      Reason = "expired"       // the time of the line or of the certificate is over
	NotYetValid  Reason = "not-yet-valid" // the certificate's time has not begun
	BadSource    Reason = "bad-source"    // the client's address is not one that may use the key
	BadPrincipal Reason = "bad-principal" // the certificate is for others
	BadType      Reason = "bad-type"      // a certificate for a host where one for a user is due, or the reverse
	BadSignature Reason = "bad-signature" // the certificate is not what the CA signed
)

// LineError is a problem of a file, or of one line of it.
type LineError struct {
	File   string // as the caller named it
	Line   int    // counted from 1; 0: the problem is the file's
	Reason Reason
	Detail string // what is wrong and what would be right, in plain words
	Err    error  // the cause, or nil
}

// Error returns "FILE:LINE: DETAIL: CAUSE".
func (e *LineError) Error() string {
	text := place(e.File, e.Line) + ": " + e.Detail
	if e.Err != nil {
		text += ": " + plain(e.Err.Error())
	}
	return text
}

// Unwrap returns the cause.
func (e *LineError) Unwrap() error { return e.Err }

// RefusedError says why a key or a certificate is refused.
type RefusedError struct {
	Reason Reason
	File   string // the file that was asked
	Line   int    // the line that decided, counted from 1; 0: no line has the key
	Detail string // what is wrong and the likely mend, in plain words
	Err    error  // the cause, or nil
}

// Error returns "FILE:LINE: DETAIL: CAUSE".
func (e *RefusedError) Error() string {
	text := place(e.File, e.Line) + ": " + e.Detail
	if e.Err != nil {
		text += ": " + plain(e.Err.Error())
	}
	return text
}

// Unwrap returns the cause.
func (e *RefusedError) Unwrap() error { return e.Err }

// place names a line of a file.
func place(file string, line int) string {
	if line == 0 {
		return file
	}
	return fmt.Sprintf("%s:%d", file, line)
}

// problem is what is wrong with a line, before it is known which line it is.
type problem struct {
	reason Reason
	detail string
	err    error
}

// badFormat makes the problem of a line that does not have its file's form.
func badFormat(format string, args ...any) *problem {
	return &problem{reason: BadFormat, detail: fmt.Sprintf(format, args...)}
}

// badOption makes the problem of an option.
func badOption(format string, args ...any) *problem {
	return &problem{reason: BadOption, detail: fmt.Sprintf(format, args...)}
}

// plain makes the text of another package's error fit for a log line: it may have in it what somebody else chose.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, clip(s))
}

// clip cuts a text that somebody else chose to a length fit for a log line.
func clip(s string) string {
	const maxShown = 128
	if len(s) > maxShown {
		return strings.ToValidUTF8(s[:maxShown], "") + "..."
	}
	return s
}
