package action

import (
	"slices"
	"testing"
)

var (
	deployments = Resource{Group: "apps", Version: "v1", Resource: "deployments", Kind: "Deployment", Namespaced: true}
	namespaces  = Resource{Version: "v1", Resource: "namespaces", Kind: "Namespace"}
)

func apply(r Resource) Action {
	return Action{Verb: Patch, Resource: r, Options: Options{PatchType: ApplyPatch}}
}

func TestVerbs(t *testing.T) {
	for _, row := range []struct {
		action Action
		want   []string
	}{
		{Action{Verb: Get}, []string{"get"}},
		{Action{Verb: Delete}, []string{"delete"}},
		{Action{Verb: Patch, Options: Options{PatchType: MergePatch}}, []string{"patch"}},
		{apply(deployments), []string{"create", "patch"}}, // it creates what is missing
	} {
		if got := row.action.Verbs(); !slices.Equal(got, row.want) {
			t.Errorf("Verbs of %s = %v; want %v", row.action, got, row.want)
		}
	}
}

func TestScopeCovers(t *testing.T) {
	scale := Action{Verb: Patch, Resource: deployments, Subresource: "scale", Options: Options{PatchType: MergePatch}}
	for _, row := range []struct {
		name   string
		scope  Scope
		action Action
		want   bool
	}{
		{"same", Scope{Verbs: []string{Patch}, Resource: "deployments.apps", Subresource: "scale"}, scale, true},
		{"any resource", Scope{Verbs: []string{Patch}, Subresource: "scale"}, scale, true},
		{"one verb of several", Scope{Verbs: []string{Get, Patch}, Subresource: "scale"}, scale, false},
		{"another verb", Scope{Verbs: []string{Get}, Subresource: "scale"}, scale, false},
		{"no verbs", Scope{Subresource: "scale"}, scale, false},
		{"the object is not its subresource", Scope{Verbs: []string{Patch}}, scale, false},
		{"the subresource is not its object", Scope{Verbs: []string{Delete}, Subresource: "scale"}, Action{Verb: Delete, Resource: deployments}, false},
		{"another subresource", Scope{Verbs: []string{Patch}, Subresource: "status"}, scale, false},
		{"same name in another group", Scope{Verbs: []string{Patch}, Resource: "deployments", Subresource: "scale"}, scale, false},
		{"apply needs create and patch", Scope{Verbs: []string{Create, Patch}}, apply(deployments), true},
		{"apply is more than patch", Scope{Verbs: []string{Patch}}, apply(deployments), false},
		{"apply is more than create", Scope{Verbs: []string{Create}}, apply(deployments), false},
	} {
		if got := row.scope.Covers(row.action); got != row.want {
			t.Errorf("%s: %+v covers %s = %v; want %v", row.name, row.scope, row.action, got, row.want)
		}
	}
}

func TestScopeReadOnly(t *testing.T) {
	for _, row := range []struct {
		verbs []string
		want  bool
	}{
		{[]string{Get, List}, true}, {[]string{Get, Delete}, false}, {[]string{"escalate"}, false},
	} {
		if got := (Scope{Verbs: row.verbs}).ReadOnly(); got != row.want {
			t.Errorf("ReadOnly of %v = %v", row.verbs, got)
		}
	}
}

func TestNames(t *testing.T) {
	for _, row := range []struct{ got, want string }{
		{deployments.GroupResource(), "deployments.apps"},
		{namespaces.GroupResource(), "namespaces"},
		{deployments.Path(), "apps/v1/deployments"},
		{namespaces.Path(), "v1/namespaces"},
		{Action{Verb: Patch, Resource: deployments, Subresource: "scale", Namespace: "shop", Name: "web"}.String(), "patch deployments.apps/scale shop/web"},
		{Action{Verb: List, Resource: deployments, Namespace: "shop"}.String(), "list deployments.apps in namespace shop"},
		{Action{Verb: List, Resource: deployments}.String(), "list deployments.apps"},
		{Action{Verb: Delete, Resource: namespaces, Name: "shop"}.String(), "delete namespaces shop"},
		{apply(namespaces).String(), "apply namespaces"},
		// A name that could pass for more than a name stands in quotes.
		{Action{Verb: Get, Resource: deployments, Namespace: "shop", Name: "a, delete namespaces shop"}.String(), `get deployments.apps shop/"a, delete namespaces shop"`},
		{Action{Verb: Delete, Resource: namespaces, Name: "a\n"}.String(), `delete namespaces "a\n"`},
		{Action{Verb: Delete, Resource: namespaces, Name: "системы"}.String(), `delete namespaces "системы"`},
		{Action{Verb: Delete, Resource: namespaces, Name: "system:a_b.c-d"}.String(), "delete namespaces system:a_b.c-d"},
	} {
		if row.got != row.want {
			t.Errorf("got %q, want %q", row.got, row.want)
		}
	}
}

// Two principals never share a key, however their names are cut.
func TestPrincipalKey(t *testing.T) {
	one := Principal{Issuer: "https://a", Subject: "b"}
	two := Principal{Issuer: "https://ab", Subject: ""}
	if one.Key() == two.Key() || one.Key() != (Principal{Issuer: "https://a", Subject: "b", Username: "other"}).Key() {
		t.Error("a key is issuer and subject, and nothing else")
	}
}
