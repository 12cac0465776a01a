package extauthz

import (
	"fmt"
	"strings"
	"unicode"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/codes"

	"culvert/policy"
)

// Bounds of an answer.
const (
	maxAnswerBytes = 64 << 10 // of the message; a page for a browser is the longest that is of use
	maxFields      = 32       // that an answer may set
	maxFieldBytes  = 8 << 10  // of their names and values together, which go on in a header block of 64 KiB
	maxTextBytes   = 200      // of what the authorizer says, in a reason
)

// badAnswer is why an answer cannot be used; its text says what it does.
type badAnswer string

func (e badAnswer) Error() string { return string(e) }

// verdict reads an answer: whether the flow may pass, what to set in its request, and why not. An error is a badAnswer.
//
// external_auth.proto: "Status OK allows the request. Any other status indicates the request should be denied". Envoy takes an
// answer without a status for OK, since that is code 0; here one has to say so, or to have an ok_response.
func verdict(a *authv3.CheckResponse, r *policy.Request) (allow bool, fields []policy.Header, why string, err error) {
	code, message := codes.Code(a.GetStatus().GetCode()), a.GetStatus().GetMessage()
	ok, denied := a.GetOkResponse(), a.GetDeniedResponse()
	switch {
	case a.GetErrorResponse() != nil:
		return false, nil, "", badAnswer("says that it has failed itself" + said(message, a.GetErrorResponse().GetBody()))
	case a.GetStatus() == nil && denied == nil && ok == nil:
		return false, nil, "", badAnswer("neither allows nor denies: it has no status")
	case a.GetStatus() != nil && code == codes.OK && denied != nil:
		return false, nil, "", badAnswer("has status OK and denied_response")
	case code != codes.OK && ok != nil:
		return false, nil, "", badAnswer(fmt.Sprintf("has status %v and ok_response", code))
	case code != codes.OK || denied != nil:
		return false, nil, refusal(code, message, denied), nil
	}
	if r.HTTP != nil {
		if wants := unsupported(ok); wants != "" {
			return false, nil, "", badAnswer("wants " + wants + ", which this gateway does not do")
		}
	}
	fields, err = fieldsOf(ok.GetHeaders(), r.HTTP)
	return err == nil, fields, "", err
}

// refusal is what a denial says.
func refusal(code codes.Code, message string, denied *authv3.DeniedHttpResponse) string {
	var b strings.Builder
	b.WriteString("refuses it")
	if status := denied.GetStatus().GetCode(); status != 0 {
		fmt.Fprintf(&b, " with status %d", status)
	} else if code != codes.OK {
		fmt.Fprintf(&b, " with %v", code)
	}
	b.WriteString(said(message, denied.GetBody()))
	return b.String()
}

// said is what the authorizer says, quoted, as far as it says something.
func said(message, body string) string {
	text := cut(body)
	if text == "" {
		text = cut(message)
	}
	if text == "" {
		return ""
	}
	return fmt.Sprintf(", saying %q", text)
}

// cut makes a text of others fit for a reason: one line, printable, and short.
func cut(text string) string {
	long := len(text) > maxTextBytes
	if long {
		text = text[:maxTextBytes]
	}
	text = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case r == unicode.ReplacementChar || !unicode.IsPrint(r): // also what reverses the direction of writing
			return -1
		}
		return r
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if long {
		text += "…"
	}
	return text
}

// unsupported names what an OK asks for besides header fields of the request, "" for nothing. All of it changes what the server
// gets, so that leaving it out could undo what the authorizer has meant.
func unsupported(ok *authv3.OkHttpResponse) string {
	switch {
	case len(ok.GetHeadersToRemove()) > 0:
		return "headers_to_remove"
	case len(ok.GetResponseHeadersToAdd()) > 0:
		return "response_headers_to_add"
	case len(ok.GetQueryParametersToSet()) > 0:
		return "query_parameters_to_set"
	case len(ok.GetQueryParametersToRemove()) > 0:
		return "query_parameters_to_remove"
	}
	return ""
}

// fieldsOf are the fields that an OK sets in a request, each with its whole new value; h is the request, nil where the hop does
// not have it in the clear.
func fieldsOf(options []*corev3.HeaderValueOption, h *policy.HTTP) ([]policy.Header, error) {
	if len(options) > maxFields {
		return nil, badAnswer(fmt.Sprintf("sets %d headers, and %d are the most", len(options), maxFields))
	}
	var list []policy.Header
	size := 0
	for _, o := range options {
		name, value := strings.ToLower(o.GetHeader().GetKey()), o.GetHeader().GetValue()
		if raw := o.GetHeader().GetRawValue(); value == "" && len(raw) > 0 {
			value = string(raw)
		}
		if why := forbidden(name); why != "" {
			return nil, badAnswer(fmt.Sprintf("sets the header %q, which %s", cut(name), why))
		}
		if !isFieldValue(value) {
			return nil, badAnswer(fmt.Sprintf("sets the header %q to a value with control characters, or with spaces around it", cut(name)))
		}
		old := ""
		there := false
		if i := indexOf(list, name); i >= 0 {
			old, there = list[i].Value, true
		} else if h != nil {
			old, there = h.Header(name)
		}
		value, set := combined(o, old, there, value)
		if !set {
			continue
		}
		if size += len(name) + len(value); size > maxFieldBytes {
			return nil, badAnswer(fmt.Sprintf("sets headers of more than %d bytes", maxFieldBytes))
		}
		if i := indexOf(list, name); i >= 0 {
			list[i].Value = value
		} else {
			list = append(list, policy.Header{Name: name, Value: value})
		}
	}
	return list, nil
}

func indexOf(list []policy.Header, name string) int {
	for i := range list {
		if list[i].Name == name {
			return i
		}
	}
	return -1
}

// combined is the value of a field that a request has, or has not, after an option; set is false where it stays as it is.
//
// external_auth.proto: "By leaving append as false, the filter will either add a new header, or override an existing one if
// there is a match." The default of append_action does not count, as of Envoy v1.39, whose authorizers leave it out.
func combined(o *corev3.HeaderValueOption, old string, there bool, value string) (_ string, set bool) {
	//lint:ignore SA1019 it is what external_auth.proto speaks of, and what authorizers send
	appends := o.GetAppend()
	switch {
	case appends.GetValue():
		if there && old != "" {
			value = old + "," + value
		}
	case appends != nil: // false
	case o.GetAppendAction() == corev3.HeaderValueOption_ADD_IF_ABSENT:
		return value, !there
	case o.GetAppendAction() == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
		return value, there
	}
	return value, true
}

// forbidden says why an answer may not set a field, "" if it may. name is in lower case.
func forbidden(name string) string {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings",
		"proxy-authenticate", "proxy-authentication-info", "proxy-authorization":
		return "is about one connection (RFC 9110, section 7.6.1)"
	case "content-length", "host", "expect":
		return "says where a request goes and where it ends"
	case "baggage", "forwarded", "traceparent", "tracestate", "via", "proxy-status", "capsule-protocol", "x-tun":
		return "is this gateway's own"
	}
	switch {
	case strings.HasPrefix(name, ":"):
		return "is a pseudo header (RFC 9113, section 8.3)"
	case strings.HasPrefix(name, "x-forwarded-"):
		return "says where a request comes from"
	case !isToken(name):
		return "is no name of a field"
	}
	return ""
}

// isFieldValue reports whether s can be sent (RFC 9110, section 5.5): no control characters but tabs, no space at its ends.
func isFieldValue(s string) bool {
	if s != strings.Trim(s, " \t") {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) < 0
}
