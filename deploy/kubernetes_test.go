package deploy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// kubernetesSchemas has the definitions of kubernetesVersion's OpenAPI that our kinds need, without descriptions. They come from the
// Go module k8s.io/kubernetes (Apache License 2.0), which is not one of ours; `go test ./deploy -run Kubernetes -update` fetches it.
const (
	kubernetesSchemas = "testdata/kubernetes.json"
	kubernetesVersion = "v1.37.2"
)

// kubernetesKinds are the kinds of our manifests, by apiVersion and kind.
var kubernetesKinds = map[string]string{
	"v1 ServiceAccount":                             "io.k8s.api.core.v1.ServiceAccount",
	"v1 Service":                                    "io.k8s.api.core.v1.Service",
	"apps/v1 Deployment":                            "io.k8s.api.apps.v1.Deployment",
	"apps/v1 DaemonSet":                             "io.k8s.api.apps.v1.DaemonSet",
	"autoscaling/v2 HorizontalPodAutoscaler":        "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
	"policy/v1 PodDisruptionBudget":                 "io.k8s.api.policy.v1.PodDisruptionBudget",
	"networking.k8s.io/v1 NetworkPolicy":            "io.k8s.api.networking.v1.NetworkPolicy",
	"kustomize.config.k8s.io/v1beta1 Kustomization": "", // not of the API server
}

// schema is as much of OpenAPI 2 as Kubernetes uses.
type schema struct {
	Ref        string             `json:"$ref,omitempty"`
	Type       string             `json:"type,omitempty"`
	Format     string             `json:"format,omitempty"`
	Properties map[string]*schema `json:"properties,omitempty"`
	Required   []string           `json:"required,omitempty"`
	Items      *schema            `json:"items,omitempty"`
	Additional *schema            `json:"additionalProperties,omitempty"`
}

// schemas are definitions by name.
type schemas map[string]*schema

// resolve follows a reference.
func (d schemas) resolve(s *schema) *schema {
	if name, ok := strings.CutPrefix(s.Ref, "#/definitions/"); ok {
		return d[name]
	}
	return s
}

// reach adds s and what it refers to, from d, to found.
func (d schemas) reach(name string, found schemas) {
	if found[name] != nil {
		return
	}
	found[name] = d[name]
	var walk func(s *schema)
	walk = func(s *schema) {
		if s == nil {
			return
		}
		if next, ok := strings.CutPrefix(s.Ref, "#/definitions/"); ok {
			d.reach(next, found)
		}
		for _, p := range s.Properties {
			walk(p)
		}
		walk(s.Items)
		walk(s.Additional)
	}
	walk(d[name])
}

// faults says what is wrong with v, at path, for s.
func (d schemas) faults(path string, v any, s *schema) (list []string) {
	note := func(format string, args ...any) { list = append(list, path+": "+fmt.Sprintf(format, args...)) }
	s = d.resolve(s)
	switch v := v.(type) {
	case map[string]any:
		if s.Type != "object" {
			note("a mapping, want %s", s.Type)
			return list
		}
		for _, name := range s.Required {
			if v[name] == nil {
				note("%s is missing", name)
			}
		}
		for name, value := range v {
			field := s.Properties[name]
			if field == nil {
				field = s.Additional
			}
			if field == nil {
				note("unknown field %s", name)
				continue
			}
			list = append(list, d.faults(path+"."+name, value, field)...)
		}
	case []any:
		if s.Type != "array" {
			note("a list, want %s", s.Type)
			return list
		}
		for i, value := range v {
			list = append(list, d.faults(fmt.Sprintf("%s[%d]", path, i), value, s.Items)...)
		}
	case string:
		if s.Type != "string" {
			note("a text, want %s", s.Type)
		}
	case bool:
		if s.Type != "boolean" {
			note("true or false, want %s", s.Type)
		}
	case int:
		if s.Type != "integer" && s.Format != "int-or-string" {
			note("a number, want %s", s.Type)
		}
	default:
		note("%v is nothing that is known", v)
	}
	return list
}

// fetchSchemas writes the part of the definitions that is needed.
func fetchSchemas(t *testing.T) {
	t.Helper()
	out, err := exec.Command("go", "mod", "download", "-json", "k8s.io/kubernetes@"+kubernetesVersion).Output()
	var module struct{ Dir string }
	if err = errors.Join(err, json.Unmarshal(out, &module)); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(module.Dir, "api/openapi-spec/swagger.json"))
	var all struct{ Definitions schemas }
	if err = errors.Join(err, json.Unmarshal(text, &all)); err != nil {
		t.Fatal(err)
	}
	found := schemas{}
	for _, name := range kubernetesKinds {
		if name != "" {
			all.Definitions.reach(name, found)
		}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", " ")
	if err := enc.Encode(found); err != nil {
		t.Fatal(err)
	}
	write(t, kubernetesSchemas, b.String(), 0o644)
}

// documents reads a file of YAML documents.
func documents(t *testing.T, file string) (list []map[string]any) {
	t.Helper()
	dec := yaml.NewDecoder(strings.NewReader(read(t, file)))
	for {
		var doc map[string]any
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		list = append(list, doc)
	}
}

func TestKubernetesManifestsFitTheirSchemas(t *testing.T) {
	if *update {
		fetchSchemas(t)
	}
	var defs schemas
	if err := json.Unmarshal([]byte(read(t, kubernetesSchemas)), &defs); err != nil {
		t.Fatal(err)
	}
	for _, file := range find(t, ".yaml") {
		if !strings.HasPrefix(file, "kubernetes/") || filepath.Base(file) == "gateway.yaml" {
			continue
		}
		for _, doc := range documents(t, file) {
			kind := fmt.Sprintf("%v %v", doc["apiVersion"], doc["kind"])
			name, known := kubernetesKinds[kind]
			if !known {
				t.Errorf("%s: %s is none of the kinds that this test knows", file, kind)
			} else if name != "" {
				for _, fault := range defs.faults(kind, doc, defs[name]) {
					t.Errorf("%s: %s", file, fault)
				}
			}
		}
	}
	for name, bad := range map[string]string{
		"unknown field":  "{apiVersion: v1, kind: Service, spec: {port: 1}}",
		"missing":        "{apiVersion: v1, kind: Service, spec: {ports: [{name: x}]}}",
		"wrong type":     "{apiVersion: v1, kind: Service, spec: {ports: [{port: x}]}}",
		"list for text":  "{apiVersion: v1, kind: Service, spec: {type: [x]}}",
		"text for a map": "{apiVersion: v1, kind: Service, spec: x}",
	} {
		var doc map[string]any
		if err := yaml.Unmarshal([]byte(bad), &doc); err != nil || len(defs.faults("x", doc, defs["io.k8s.api.core.v1.Service"])) != 1 {
			t.Errorf("%s: nothing is found wrong with %s (%v)", name, bad, err)
		}
	}
}

// at follows a path of keys into a document; numbers are of lists.
func at(v any, path ...any) any {
	for _, key := range path {
		switch key := key.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[key]
		case int:
			l, _ := v.([]any)
			if key >= len(l) {
				return nil
			}
			v = l[key]
		}
	}
	return v
}

// What schemas do not say: that selectors, names and ports of a role's objects belong together, that nobody has more rights than the
// role needs, and that what kustomize puts together is there.
func TestKubernetesManifestsBelongTogether(t *testing.T) {
	folders, err := filepath.Glob("kubernetes/*/kustomization.yaml")
	if err != nil || len(folders) < 8 {
		t.Fatalf("folders = %q, %v, want one for each role", folders, err)
	}
	for _, file := range folders {
		dir := filepath.Dir(file)
		role := filepath.Base(dir)
		t.Run(role, func(t *testing.T) {
			k := documents(t, file)[0]
			keys := slices.Sorted(maps.Keys(k))
			if want := "[apiVersion configMapGenerator kind namespace resources]"; fmt.Sprint(keys) != want {
				t.Errorf("kustomization.yaml has %v, want %s", keys, want)
			}
			if fmt.Sprint(k["resources"]) != "[objects.yaml]" || fmt.Sprint(at(k, "configMapGenerator", 0, "files")) != "[gateway.yaml]" {
				t.Error("kustomization.yaml does not put objects.yaml and gateway.yaml together")
			}
			objects := map[string]map[string]any{}
			for _, doc := range documents(t, filepath.Join(dir, "objects.yaml")) {
				kind := fmt.Sprint(doc["kind"])
				objects[kind] = doc
				if name := at(doc, "metadata", "name"); name != "culvert-"+role {
					t.Errorf("%s is called %v", kind, name)
				}
			}
			if at(k, "configMapGenerator", 0, "name") != "culvert-"+role {
				t.Error("the generated ConfigMap has not the name that the pods mount")
			}
			checkPods(t, role, objects)
		})
	}
}

func checkPods(t *testing.T, role string, objects map[string]map[string]any) {
	work := objects["Deployment"]
	if role == "uproxy" {
		work = objects["DaemonSet"]
	} else if objects["HorizontalPodAutoscaler"] == nil || objects["PodDisruptionBudget"] == nil || objects["NetworkPolicy"] == nil {
		t.Error("there is no HorizontalPodAutoscaler, PodDisruptionBudget or NetworkPolicy")
	}
	labels := at(work, "spec", "template", "metadata", "labels")
	for _, sel := range []any{
		at(work, "spec", "selector", "matchLabels"), at(objects["PodDisruptionBudget"], "spec", "selector", "matchLabels"),
		at(objects["NetworkPolicy"], "spec", "podSelector", "matchLabels"), at(objects["Service"], "spec", "selector"),
	} {
		if m, _ := sel.(map[string]any); m != nil && fmt.Sprint(m) != fmt.Sprint(labels) {
			t.Errorf("a selector is %v, and the labels are %v", sel, labels)
		}
	}
	pod, _ := at(work, "spec", "template", "spec").(map[string]any)
	ports := map[any]bool{}
	for i := 0; at(pod, "containers", 0, "ports", i) != nil; i++ {
		ports[at(pod, "containers", 0, "ports", i, "name")] = true
	}
	for i := 0; at(objects["Service"], "spec", "ports", i) != nil; i++ {
		if p := at(objects["Service"], "spec", "ports", i, "targetPort"); !ports[p] {
			t.Errorf("the Service leads to port %v, which no container has", p)
		}
	}
	wantCaps := "map[drop:[ALL]]"
	if role == "uproxy" {
		wantCaps = "map[add:[NET_ADMIN] drop:[ALL]]"
	} else if at(pod, "securityContext", "runAsNonRoot") != true || pod["hostNetwork"] != nil {
		t.Error("the pod is not confined as the restricted standard wants it")
	}
	volumes := map[any]bool{}
	for i := 0; at(pod, "volumes", i) != nil; i++ {
		volumes[at(pod, "volumes", i, "name")] = true
	}
	for _, list := range []string{"initContainers", "containers"} {
		for i := 0; at(pod, list, i) != nil; i++ {
			c := at(pod, list, i)
			if at(c, "securityContext", "readOnlyRootFilesystem") != true || at(c, "securityContext", "allowPrivilegeEscalation") != false ||
				fmt.Sprint(at(c, "securityContext", "capabilities")) != wantCaps || at(pod, "securityContext", "seccompProfile", "type") != "RuntimeDefault" {
				t.Errorf("container %v is not confined: %v", at(c, "name"), at(c, "securityContext"))
			}
			for j := 0; at(c, "volumeMounts", j) != nil; j++ {
				if v := at(c, "volumeMounts", j, "name"); !volumes[v] {
					t.Errorf("there is no volume %v", v)
				}
			}
		}
	}
	checkAddresses(t, role, pod)
}

// checkAddresses compares the ports of a pod with the addresses of its configuration.
func checkAddresses(t *testing.T, role string, pod map[string]any) {
	config := documents(t, filepath.Join("kubernetes", role, "gateway.yaml"))[0]
	addresses := fmt.Sprint(at(config, "admin", "address"))
	for i := 0; at(config, "listeners", i) != nil; i++ {
		addresses += fmt.Sprint(" ", at(config, "listeners", i, "address"))
	}
	for i := 0; at(pod, "containers", 0, "ports", i) != nil; i++ {
		if p := fmt.Sprint(":", at(pod, "containers", 0, "ports", i, "containerPort")); !strings.Contains(addresses+" ", p+" ") {
			t.Errorf("nothing listens on port %s of the pod, but on %s", p, addresses)
		}
	}
	if at(pod, "terminationGracePeriodSeconds").(int) <= 30 {
		t.Error("the pod is killed before the drain (30s) is over")
	}
}
