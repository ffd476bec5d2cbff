package kube

import (
	"context"
	_ "embed" // builtin.txt
	"errors"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/restmapper"

	"countersign/action"
	"countersign/tools"
)

// builtinTable is what an API server without custom resources serves: a line is
// group (- is the core group), version, plural, kind, namespaced or cluster, and
// the singular with the short names. It is recorded from a real API server by
// "go test ./e2e -run TestBuiltin -update".
//
//go:embed builtin.txt
var builtinTable string

// Kinds resolves the names of kinds without asking a cluster. It implements
// tools.Resolver, for any name of a cluster.
type Kinds struct {
	served *cluster
	names  []string
}

// Builtin knows the kinds that every Kubernetes API server serves, in the
// versions that it prefers, and some more.
func Builtin(extra ...action.Resource) *Kinds {
	w := &written{}
	for line := range strings.Lines(builtinTable) {
		f := strings.Fields(line)
		names := strings.Split(f[5], ",")
		w.add(action.Resource{Group: strings.TrimPrefix(f[0], "-"), Version: f[1], Resource: f[2], Kind: f[3], Namespaced: f[4] == "namespaced"}, names[0], names[1:])
	}
	for _, r := range extra {
		w.add(r, strings.ToLower(r.Kind), nil)
	}
	k := &Kinds{served: &cluster{discovery: w, mapper: restmapper.NewDeferredDiscoveryRESTMapper(w)}}
	k.served.shortcuts = restmapper.NewShortcutExpander(k.served.mapper, w, nil)
	for _, list := range w.lists {
		for _, r := range list.APIResources {
			if name := (action.Resource{Group: r.Group, Resource: r.Name}).GroupResource(); !slices.Contains(k.names, name) {
				k.names = append(k.names, name)
			}
		}
	}
	return k
}

// Names are those of all the kinds, as action.Resource.GroupResource has them.
func (k *Kinds) Names() []string { return k.names }

// Resolve implements tools.Resolver.
func (k *Kinds) Resolve(_ context.Context, _, apiVersion, kind string) (action.Resource, error) {
	if !kindName.MatchString(kind) {
		return action.Resource{}, tools.BadArgument("kind %.100q is not the name of a kind", kind)
	}
	resource, err := k.served.resolve(apiVersion, kind)
	var argument *tools.ArgumentError
	if err == nil || errors.As(err, &argument) {
		return resource, err
	}
	if version, bad := schema.ParseGroupVersion(apiVersion); apiVersion != "" && bad == nil {
		if known, err := k.served.mapper.RESTMapping(schema.GroupKind{Group: version.Group, Kind: kind}); err == nil {
			return resource, tools.BadArgument("%s %s: write it as %s, the version that API servers prefer", kind, apiVersion, known.GroupVersionKind.GroupVersion())
		}
	}
	text := fmt.Sprintf("Kubernetes itself has no kind %q", strings.TrimSpace(apiVersion+" "+kind))
	if near := k.served.near(kind); len(near) > 0 {
		text += "; near it are " + strings.Join(near, ", ")
	}
	return resource, tools.BadArgument("%s", text)
}

// Struct is a new value of the Go type of a built-in kind, nil for another. Its
// tags say how the lists of such an object are merged.
func (k *Kinds) Struct(r action.Resource) any {
	object, err := scheme.Scheme.New(schema.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind})
	if err != nil {
		return nil
	}
	return object
}

// written is discovery that reads a table instead of asking a server.
type written struct {
	discovery.CachedDiscoveryInterface // nil: nothing but the methods below is called

	groups []*metav1.APIGroup
	lists  []*metav1.APIResourceList
}

func (w *written) add(r action.Resource, singular string, shortNames []string) {
	gv := schema.GroupVersion{Group: r.Group, Version: r.Version}.String()
	version := metav1.GroupVersionForDiscovery{GroupVersion: gv, Version: r.Version}
	g := slices.IndexFunc(w.groups, func(g *metav1.APIGroup) bool { return g.Name == r.Group })
	if g < 0 {
		g = len(w.groups)
		w.groups = append(w.groups, &metav1.APIGroup{Name: r.Group, PreferredVersion: version})
	}
	l := slices.IndexFunc(w.lists, func(l *metav1.APIResourceList) bool { return l.GroupVersion == gv })
	if l < 0 {
		l = len(w.lists)
		w.lists = append(w.lists, &metav1.APIResourceList{GroupVersion: gv})
		w.groups[g].Versions = append(w.groups[g].Versions, version)
	}
	w.lists[l].APIResources = append(w.lists[l].APIResources, metav1.APIResource{
		Name: r.Resource, SingularName: singular, ShortNames: shortNames, Namespaced: r.Namespaced,
		Group: r.Group, Version: r.Version, Kind: r.Kind,
	})
}

func (w *written) ServerGroupsAndResources() ([]*metav1.APIGroup, []*metav1.APIResourceList, error) {
	return w.groups, w.lists, nil
}

func (w *written) Fresh() bool { return true }
func (w *written) Invalidate() {}
