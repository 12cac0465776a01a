package main

import (
	"bytes"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// TestRepoNamesNoMachine finds paths of one machine and hosts that packages are fetched from: both are somebody's
// own matter. The patterns are put together here so that this file does not find itself.
func TestRepoNamesNoMachine(t *testing.T) {
	type pattern struct {
		literal string // without it the expression cannot match; most files are done with that
		exp     *regexp.Regexp
	}
	var patterns []pattern
	for literal, rest := range map[string]string{"/ro" + "ot": `(?:[/\s"'` + "`" + `):,;]|$)`, "/ho" + "me/": "", "/wo" + "rk/": ""} {
		patterns = append(patterns, pattern{literal, regexp.MustCompile(`(?m)(?:^|[^\w.$}\])-])` + literal + rest)})
	}
	for host, domains := range map[string][]string{
		"golang":   {"proxy.%s.org", "sum.%s.org"},
		"pypi":     {"%s.org"},
		"python":   {"files.%shosted.org"},
		"npmjs":    {"registry.%s.org"},
		"debian":   {"deb.%s.org", "security.%s.org", "snapshot.%s.org"},
		"docker":   {"%s.io", "hub.%s.com"},
		"ghcr":     {"%s.io"},
		"gcr":      {"%s.io"},
		"quay":     {"%s.io"},
		"crates":   {"%s.io"},
		"rubygems": {"%s.org"},
	} {
		for _, domain := range domains {
			name := strings.ReplaceAll(domain, "%s", host)
			patterns = append(patterns, pattern{name, regexp.MustCompile(`(?:^|[^\w-])` + regexp.QuoteMeta(name) + `(?:[^\w-]|$)`)})
		}
	}
	for _, name := range repoFiles(t) {
		text := repoRead(t, name)
		if bytes.IndexByte(text, 0) >= 0 {
			continue // not a text
		}
		for _, p := range patterns {
			if !bytes.Contains(text, []byte(p.literal)) {
				continue
			}
			for _, at := range p.exp.FindAllIndex(text, 3) {
				t.Errorf("%s:%d: %q names a machine or a package host", name, 1+bytes.Count(text[:at[0]+1], []byte("\n")),
					strings.TrimSpace(string(text[at[0]:at[1]])))
			}
		}
	}
}

func repoRead(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repoRoot, name))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// repoDocs returns the Markdown files of the tree.
func repoDocs(t *testing.T) []string {
	t.Helper()
	return slices.DeleteFunc(repoFiles(t), func(name string) bool {
		return path.Ext(name) != ".md" || strings.Contains(name, "testdata/")
	})
}

func TestRepoHasItsDocuments(t *testing.T) {
	docs := repoFiles(t)
	for _, want := range []string{
		"README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "LICENSE",
		"docs/README.md", "docs/configuration.md", "docs/exit-codes.md", "docs/hbone.md", "docs/operations.md",
	} {
		if !slices.Contains(docs, want) {
			t.Errorf("%s is missing", want)
		}
	}
}

// repoSplit parts a Markdown text into its code (fenced blocks and spans, a line each) and its prose.
func repoSplit(text string) (code, prose []string) {
	fenced := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(strings.TrimSpace(line), "```"):
			fenced = !fenced
		case fenced:
			code = append(code, line)
		default:
			var rest strings.Builder
			for i, part := range strings.Split(line, "`") {
				if i%2 == 1 {
					code = append(code, part)
				} else {
					rest.WriteString(part)
				}
			}
			prose = append(prose, rest.String())
		}
	}
	return code, prose
}

func TestRepoLinksResolve(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for _, name := range repoDocs(t) {
		_, prose := repoSplit(string(repoRead(t, name)))
		for _, line := range prose {
			for _, m := range link.FindAllStringSubmatch(line, -1) {
				if fault := repoLinkFault(t, name, m[1]); fault != "" {
					t.Errorf("%s: the link %s: %s", name, m[1], fault)
				}
			}
		}
	}
}

// repoLinkFault says why a link in the document name leads nowhere. Links to other hosts are not followed.
func repoLinkFault(t *testing.T, name, target string) string {
	if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
		return ""
	}
	file, anchor, _ := strings.Cut(target, "#")
	if file == "" {
		file = name
	} else {
		file = path.Join(path.Dir(name), file)
	}
	if _, err := os.Stat(filepath.Join(repoRoot, file)); err != nil {
		return "no such file"
	}
	if anchor == "" || path.Ext(file) != ".md" {
		return ""
	}
	for line := range strings.Lines(string(repoRead(t, file))) {
		if heading := strings.TrimLeft(line, "#"); heading != line && repoSlug(heading) == anchor {
			return ""
		}
	}
	return "no such heading"
}

// TestRepoPathsInDocsExist looks for the files that documents name in their code: pool.go of a package as
// `tunnel/pool.go`. A * stands for part of a name.
func TestRepoPathsInDocsExist(t *testing.T) {
	file := regexp.MustCompile(`(?:^|[\s(])((?:[\w.*-]+/)+[\w.*-]+\.(?:go|md|txt|mod|service))\b`)
	for _, name := range repoDocs(t) {
		code, _ := repoSplit(string(repoRead(t, name)))
		for _, line := range code {
			for _, m := range file.FindAllStringSubmatch(line, -1) {
				if found, err := filepath.Glob(filepath.Join(repoRoot, m[1])); err != nil || len(found) == 0 {
					t.Errorf("%s: there is no file %s", name, m[1])
				}
			}
		}
	}
}

// TestRepoCommentsNameDocumentsThatExist follows what Go comments say of the documents: the name of a file, and after it
// in quotes a heading. Documents have no numbered sections.
func TestRepoCommentsNameDocumentsThatExist(t *testing.T) {
	reference := regexp.MustCompile(`([\w/-]+\.md)(?:, (?:"([^"]+)"|(section \d+)))?`)
	docs := map[string]string{"spiffe-id.md": "SPIFFE's"} // name in lower case, with and without folder → path
	for _, name := range repoDocs(t) {
		docs[strings.ToLower(name)] = name
		if docs[strings.ToLower(path.Base(name))] == "" {
			docs[strings.ToLower(path.Base(name))] = name
		}
	}
	for _, s := range repoSources(t) {
		for _, group := range s.file.Comments {
			text := strings.Join(strings.Fields(group.Text()), " ")
			for _, m := range reference.FindAllStringSubmatch(text, -1) {
				doc := docs[strings.ToLower(m[1])]
				switch {
				case doc == "":
					t.Errorf("%s: a comment names %s, which is not in this repository", s.at(group.Pos()), m[1])
				case m[3] != "":
					t.Errorf("%s: %s has no numbered sections; name the heading: %s, \"…\"", s.at(group.Pos()), doc, m[1])
				case m[2] != "" && repoLinkFault(t, doc, "#"+repoSlug(m[2])) != "":
					t.Errorf("%s: %s has no heading %q", s.at(group.Pos()), doc, m[2])
				}
			}
		}
	}
}

// repoSlug is the anchor that Markdown renderers give a heading.
func repoSlug(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
			return unicode.ToLower(r)
		}
		return -1
	}, strings.TrimSpace(heading))
}

func TestRepoMakeTargetsExist(t *testing.T) {
	targets := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^([a-z]+):`).FindAllStringSubmatch(string(repoRead(t, "Makefile")), -1) {
		targets[m[1]] = true
	}
	command := regexp.MustCompile(`\bmake((?: [\w./=-]+)+)`)
	word := regexp.MustCompile(`^[a-z]+$`)
	for _, name := range repoDocs(t) {
		code, _ := repoSplit(string(repoRead(t, name)))
		for _, line := range code {
			line, _, _ = strings.Cut(line, "#")
			for _, m := range command.FindAllStringSubmatch(line, -1) {
				for _, target := range strings.Fields(m[1]) {
					if word.MatchString(target) && !targets[target] {
						t.Errorf("%s: `make %s` is no target of the Makefile", name, target)
					}
				}
			}
		}
	}
}
