package extauthz

import (
	"strings"
	"testing"
	"unicode"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"culvert/policy"
)

// answerOf reads an answer as text.
func answerOf(tb testing.TB, text string) *authv3.CheckResponse {
	tb.Helper()
	a := new(authv3.CheckResponse)
	if err := prototext.Unmarshal([]byte(text), a); err != nil {
		tb.Fatal(err)
	}
	return a
}

// sets is an answer that sets one header, with options besides.
func sets(name, value, more string) string {
	return `status {} ok_response { headers { header { key: "` + name + `" value: "` + value + `" } ` + more + ` } }`
}

func TestVerdict(t *testing.T) {
	inTheClear := &policy.Request{HTTP: &policy.HTTP{Header: headersOf(map[string]string{"x-user": "mallory", "x-role": "guest"})}}
	many := strings.Repeat(`headers { header { key: "x-a" value: "b" } }`, maxFields+1)
	for _, tt := range []struct {
		name, answer string
		allow        bool
		fields       string // NAME=VALUE, with spaces between
		want         string // in the refusal
	}{
		{"ok", `status { code: 0 }`, true, "", ""},
		{"ok_response alone", `ok_response {}`, true, "", ""},
		{"ok with a header", sets("X-Team", "blue", ""), true, "x-team=blue", ""},
		{"raw value", `status {} ok_response { headers { header { key: "x-team" raw_value: "blue" } } }`, true, "x-team=blue", ""},
		{"override", sets("x-user", "alice", ""), true, "x-user=alice", ""},
		{"override by append: false", sets("x-user", "alice", "append { value: false }"), true, "x-user=alice", ""},
		{"append", sets("x-user", "alice", "append { value: true }"), true, "x-user=mallory,alice", ""},
		{"append to nothing", sets("x-new", "alice", "append { value: true }"), true, "x-new=alice", ""},
		{"only if absent", sets("x-user", "alice", "append_action: ADD_IF_ABSENT"), true, "", ""},
		{"only if there", sets("x-new", "alice", "append_action: OVERWRITE_IF_EXISTS"), true, "", ""},
		{"twice", `status {} ok_response { headers { header { key: "x-a" value: "1" } } headers { header { key: "X-A" value: "2" } append { value: true } } }`, true, "x-a=1,2", ""},

		{"denied", `status { code: 7 message: "not you" }`, false, "", `refuses it with PermissionDenied, saying "not you"`},
		{"denied with a body", `status { code: 7 message: "m" } denied_response { status { code: Forbidden } body: "go\r\naway\x1b[31m\u202e" }`, false, "", `refuses it with status 403, saying "go away[31m"`},
		{"denied_response alone", `denied_response { status { code: Unauthorized } }`, false, "", "refuses it with status 401"},
		{"status that nobody knows", `status { code: 4711 }`, false, "", "refuses it with Code(4711)"},
		{"long body", `status { code: 7 } denied_response { body: "` + strings.Repeat("ä", 4000) + `" }`, false, "", "…"},

		{"nothing", ``, false, "", "!neither allows nor denies"},
		{"OK and denied", `status {} denied_response {}`, false, "", "!status OK and denied_response"},
		{"not OK and ok_response", `status { code: 7 } ok_response {}`, false, "", "!status PermissionDenied and ok_response"},
		{"error", `status {} error_response { body: "db is down" }`, false, "", `!failed itself, saying "db is down"`},
		{"removes headers", `status {} ok_response { headers_to_remove: "cookie" }`, false, "", "!headers_to_remove"},
		{"adds to the answer", `status {} ok_response { response_headers_to_add { header { key: "a" value: "b" } } }`, false, "", "!response_headers_to_add"},
		{"sets the query", `status {} ok_response { query_parameters_to_set { key: "a" value: "b" } }`, false, "", "!query_parameters_to_set"},
		{"removes from the query", `status {} ok_response { query_parameters_to_remove: "a" }`, false, "", "!query_parameters_to_remove"},
		{"too many headers", `status {} ok_response { ` + many + ` }`, false, "", "!sets 33 headers"},
		{"too long headers", sets("x-a", strings.Repeat("b", maxFieldBytes), ""), false, "", "!more than 8192 bytes"},
		{"too long together", sets("x-user", strings.Repeat("b", maxFieldBytes-8), "append { value: true }"), false, "", "!more than 8192 bytes"},
		{"pseudo header", sets(":path", "/admin", ""), false, "", "!pseudo header"},
		{"host", sets("Host", "other", ""), false, "", "!where a request goes"},
		{"length", sets("content-length", "0", ""), false, "", "!where a request goes"},
		{"hop by hop", sets("Transfer-Encoding", "chunked", ""), false, "", "!about one connection"},
		{"connection", sets("connection", "x-user", ""), false, "", "!about one connection"},
		{"ours", sets("Forwarded", "for=1.2.3.4", ""), false, "", "!this gateway's own"},
		{"baggage", sets("baggage", "k8s.namespace.name=kube-system", ""), false, "", "!this gateway's own"},
		{"where from", sets("x-forwarded-client-cert", "URI=spiffe://a/b", ""), false, "", "!where a request comes from"},
		{"no name", sets("", "b", ""), false, "", "!no name of a field"},
		{"name with a line", sets(`a\r\nb`, "b", ""), false, "", "!no name of a field"},
		{"value with a line", sets("x-a", `b\r\nx-b: c`, ""), false, "", "!control characters"},
		{"value with a zero", sets("x-a", `b\000`, ""), false, "", "!control characters"},
		{"value with spaces", sets("x-a", ` b`, ""), false, "", "!spaces around"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			allow, fields, why, err := verdict(answerOf(t, tt.answer), inTheClear)
			var list []string
			for _, f := range fields {
				list = append(list, f.Name+"="+f.Value)
			}
			if got := strings.Join(list, " "); allow != tt.allow || got != tt.fields {
				t.Errorf("verdict = %v with %q, want %v with %q", allow, got, tt.allow, tt.fields)
			}
			if err != nil {
				why = "!" + err.Error()
			}
			if want, broken := strings.CutPrefix(tt.want, "!"); !strings.Contains(why, want) || broken != (err != nil) {
				t.Errorf("it says %q, want %q", why, tt.want)
			}
			if len(why) > 2*maxTextBytes {
				t.Errorf("the reason has %d bytes", len(why))
			}
		})
	}
}

// Where there is no request in the clear, nothing in it is to be changed.
func TestVerdictOfATunnel(t *testing.T) {
	allow, fields, _, err := verdict(answerOf(t, `status {} ok_response { headers { header { key: "x-a" value: "b" } } headers_to_remove: "cookie" }`), new(policy.Request))
	if !allow || err != nil || len(fields) != 1 {
		t.Errorf("verdict = %v with %v, %v; want that it allows", allow, fields, err)
	}
}

// FuzzVerdict: whatever an authorizer sends, an allowance says so, and what is to be set can be sent and logged.
func FuzzVerdict(f *testing.F) {
	for _, text := range []string{`status {}`, sets("x-a", "b", "append { value: true }"), `status { code: 7 } denied_response { body: "a\tb" }`, `error_response {}`, sets(":path", "/", "")} {
		wire, err := proto.Marshal(answerOf(f, text))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire, true)
	}
	f.Add([]byte{0x1a, 0x00}, false)
	f.Fuzz(func(t *testing.T, wire []byte, clear bool) {
		a := new(authv3.CheckResponse)
		if proto.Unmarshal(wire, a) != nil {
			return
		}
		r := new(policy.Request)
		if clear {
			r.HTTP = &policy.HTTP{Header: headersOf(map[string]string{"x-a": "old"})}
		}
		allow, fields, why, err := verdict(a, r)
		if allow && (err != nil || a.GetStatus().GetCode() != 0 || a.GetDeniedResponse() != nil || a.GetErrorResponse() != nil || a.GetStatus() == nil && a.GetOkResponse() == nil) {
			t.Errorf("allowed by %s", prototext.Format(a))
		}
		if !allow && (len(fields) > 0 || why == "" && err == nil) {
			t.Errorf("refused with %v, and no reason", fields)
		}
		size := 0
		for _, h := range fields {
			size += len(h.Name) + len(h.Value)
			if forbidden(h.Name) != "" || !isFieldValue(h.Value) {
				t.Errorf("sets %q to %q", h.Name, h.Value)
			}
		}
		if len(fields) > maxFields || size > maxFieldBytes {
			t.Errorf("sets %d fields of %d bytes", len(fields), size)
		}
		if err != nil {
			why = err.Error()
		}
		if strings.IndexFunc(why, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0 {
			t.Errorf("the reason cannot be printed: %q", why)
		}
	})
}
