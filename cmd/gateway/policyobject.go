package main

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"culvert/policy"
)

// manifest is an object of Kubernetes, or a list of some.
type manifest struct {
	APIVersion string      `yaml:"apiVersion"`
	Kind       string      `yaml:"kind"`
	Metadata   metadata    `yaml:"metadata"`
	Spec       yaml.Node   `yaml:"spec"`
	Status     yaml.Node   `yaml:"status"` // of no interest
	Items      []yaml.Node `yaml:"items"`
}

// metadata is that of Kubernetes' ObjectMeta, of which name, namespace and annotations count. What it does not have is a typo.
type metadata struct {
	Name                       string            `yaml:"name"`
	Namespace                  string            `yaml:"namespace"`
	Annotations                map[string]string `yaml:"annotations"`
	Labels                     yaml.Node         `yaml:"labels"`
	GenerateName               yaml.Node         `yaml:"generateName"`
	UID                        yaml.Node         `yaml:"uid"`
	ResourceVersion            yaml.Node         `yaml:"resourceVersion"`
	Generation                 yaml.Node         `yaml:"generation"`
	CreationTimestamp          yaml.Node         `yaml:"creationTimestamp"`
	DeletionTimestamp          yaml.Node         `yaml:"deletionTimestamp"`
	DeletionGracePeriodSeconds yaml.Node         `yaml:"deletionGracePeriodSeconds"`
	ManagedFields              yaml.Node         `yaml:"managedFields"`
	OwnerReferences            yaml.Node         `yaml:"ownerReferences"`
	Finalizers                 yaml.Node         `yaml:"finalizers"`
	SelfLink                   yaml.Node         `yaml:"selfLink"`
	Continue                   yaml.Node         `yaml:"continue"`           // of a list
	Remaining                  yaml.Node         `yaml:"remainingItemCount"` // of a list
}

// istioGroup is the group of the policies of Istio, with its versions.
const istioGroup = "security.istio.io/"

// istioLists are the kinds of lists of them. It is never written.
var istioLists = []string{"AuthorizationPolicyList", "PeerAuthenticationList", "RequestAuthenticationList"}

func (p *policies) object(d *decoder, n *yaml.Node, at string) {
	var m manifest
	d.value(at, n, reflect.ValueOf(&m).Elem())
	path := func(field string) string { return strings.TrimPrefix(at+"."+field, ".") }
	istio := m.APIVersion == istioGroup+"v1" || m.APIVersion == istioGroup+"v1beta1"
	spec := func(of any) {
		if m.Spec.Kind != 0 {
			noBlanks(d, path("spec"), &m.Spec)
			d.value(path("spec"), &m.Spec, reflect.ValueOf(of).Elem())
		}
	}
	switch {
	case m.Kind == "List" && m.APIVersion == "v1", istio && slices.Contains(istioLists, m.Kind):
		if at != "" {
			p.note(d, path("kind"), "a list inside of a list; write its items here")
			return
		}
		for i := range m.Items {
			p.object(d, &m.Items[i], fmt.Sprintf("items[%d]", i))
		}
	case m.Kind == "AuthorizationPolicy" && istio:
		o := p.named(d, &m, at)
		var a policy.AuthorizationSpec
		spec(&a)
		set, problems := a.Set(o)
		p.problems(d, problems)
		p.count++
		p.add(d, set)
	case m.Kind == "PeerAuthentication" && istio:
		o := p.named(d, &m, at)
		var a policy.PeerAuthenticationSpec
		spec(&a)
		rule, problems := a.Rule(o)
		p.problems(d, problems)
		p.count++
		p.peers = append(p.peers, rule)
	case m.Kind == "RequestAuthentication" && istio:
		o := p.named(d, &m, at)
		var a policy.RequestAuthenticationSpec
		spec(&a)
		rules, problems := a.TokenRules(o)
		p.problems(d, problems)
		p.count++
		for i := range rules {
			p.tokens, p.tokenPlaces = append(p.tokens, rules[i]), append(p.tokenPlaces, d.places)
		}
	default:
		p.note(d, path("kind"), fmt.Sprintf("kind: %q of apiVersion %q is not supported; AuthorizationPolicy, PeerAuthentication and RequestAuthentication of %sv1 are, and rules of this gateway's own, without kind", m.Kind, m.APIVersion, istioGroup))
	}
}

// dryRun is the annotation of Istio that has a policy only tell what it would do.
const dryRun = "istio.io/dry-run"

// named is what an object is called, and where it stands.
func (p *policies) named(d *decoder, m *manifest, at string) *policy.Object {
	o := policy.Object{Name: m.Metadata.Name, Namespace: m.Metadata.Namespace, At: at, Place: func(at string) policy.Place { return p.place(d, at) }}
	in := strings.TrimPrefix(at+".metadata", ".")
	if o.Name == "" {
		p.note(d, in, "metadata: name is missing; refusals are explained by it")
	}
	if text, there := m.Metadata.Annotations[dryRun]; there {
		var err error
		if o.DryRun, err = strconv.ParseBool(text); err != nil {
			p.note(d, in+".annotations."+dryRun, fmt.Sprintf("annotation %s: %q is neither \"true\" nor \"false\"", dryRun, text))
		}
	}
	return &o
}

func (p *policies) problems(d *decoder, list []error) {
	for _, one := range list {
		var problem *policy.Problem
		if errors.As(one, &problem) {
			p.note(d, problem.At, problem.Error())
		}
	}
}
