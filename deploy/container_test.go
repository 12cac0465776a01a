package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// dockerStep is an instruction of a Dockerfile.
type dockerStep struct {
	stage      string // name of the stage that it is in
	word, rest string
}

// dockerSteps reads a Dockerfile without heredocs.
func dockerSteps(text string) (steps []dockerStep) {
	stage := ""
	text = regexp.MustCompile(`(?m)^\s*#.*\n`).ReplaceAllString(text, "")
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if word == "" {
			continue
		}
		if word == "FROM" {
			_, stage, _ = strings.Cut(rest, " AS ")
		}
		steps = append(steps, dockerStep{stage, word, rest})
	}
	return steps
}

// last returns what the last such instruction of a stage says.
func last(steps []dockerStep, stage, word string) string {
	for _, s := range slices.Backward(steps) {
		if s.stage == stage && s.word == word {
			return s.rest
		}
	}
	return ""
}

func TestDockerfileIsRight(t *testing.T) {
	steps := dockerSteps(read(t, "Dockerfile"))
	known := []string{"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "VOLUME", "USER", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
	stages, copied := map[string]bool{"scratch": true}, []string{}
	ignore := read(t, "Dockerfile.dockerignore")
	for _, s := range steps {
		if !slices.Contains(known, s.word) {
			t.Errorf("%s is no instruction that this test knows", s.word)
		}
		switch args := strings.Fields(s.rest); {
		case s.word == "FROM":
			stages[s.stage] = true
		case s.word == "COPY" && strings.HasPrefix(args[0], "--from="):
			if !stages[strings.TrimPrefix(args[0], "--from=")] {
				t.Errorf("COPY %s comes from no stage before", s.rest)
			}
		case s.word == "COPY":
			for _, path := range args[:len(args)-1] {
				copied = append(copied, path)
				if _, err := os.Stat(filepath.Join("..", path)); err != nil || !strings.Contains(ignore, "\n!"+path+"\n") {
					t.Errorf("COPY of %s: it is not there, or Dockerfile.dockerignore leaves it out (%v)", path, err)
				}
			}
		}
	}
	list := exec.Command("go", "list", "-deps", "-f", `{{if and .Module .Module.Main}}{{.ImportPath}}{{end}}`, "./cmd/gateway")
	list.Dir = ".."
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range strings.FieldsSeq(string(out)) {
		if top, _, _ := strings.Cut(strings.TrimPrefix(pkg, "culvert/"), "/"); !slices.Contains(copied, top) {
			t.Errorf("%s is part of the gateway, and COPY leaves out %s", pkg, top)
		}
	}
	language := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "../go.mod"))
	if want := "GO=" + language[1]; steps[0].rest != want {
		t.Errorf("ARG %s, want %s as in go.mod", steps[0].rest, want)
	}
	if user := last(steps, "gateway", "USER"); !regexp.MustCompile(`^[1-9]\d*:[1-9]\d*$`).MatchString(user) {
		t.Errorf("USER %s, want numbers, so that a cluster sees that it is not root", user)
	}
	if final := steps[len(steps)-1]; final.word != "FROM" || final.rest != "gateway" {
		t.Errorf("the last stage is %s, want gateway", final.rest)
	}
}
