package kube

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"countersign/action"
	"countersign/gate"
)

func TestPath(t *testing.T) {
	deployments := action.Resource{Group: "apps", Version: "v1", Resource: "deployments"}
	nodes := action.Resource{Version: "v1", Resource: "nodes"}
	pods := action.Resource{Version: "v1", Resource: "pods"}
	for _, row := range []struct {
		action action.Action
		want   string
	}{
		{action.Action{Verb: action.List, Resource: deployments}, "/apis apps v1 deployments"},
		{action.Action{Verb: action.Get, Resource: nodes, Name: "a"}, "/api v1 nodes a"},
		{action.Action{Verb: action.Patch, Resource: deployments, Namespace: "shop", Name: "web", Subresource: "scale"}, "/apis apps v1 namespaces shop deployments web scale"},
		// A new object is sent to its collection; what is made of an object, to that.
		{action.Action{Verb: action.Create, Resource: deployments, Namespace: "shop", Name: "web"}, "/apis apps v1 namespaces shop deployments"},
		{action.Action{Verb: action.Create, Resource: nodes}, "/api v1 nodes"},
		{action.Action{Verb: action.Create, Resource: pods, Namespace: "shop", Name: "web", Subresource: "eviction"}, "/api v1 namespaces shop pods web eviction"},
	} {
		if got := strings.Join(path(row.action), " "); got != row.want {
			t.Errorf("%s: %s; want %s", row.action, got, row.want)
		}
	}
}

// Whatever changes a Secret, the API server's words do not come through where
// they can repeat a value.
func TestWithoutValues(t *testing.T) {
	secrets := action.Resource{Version: "v1", Resource: "secrets"}
	changes := []action.Action{{Verb: action.Create, Resource: secrets}, {Verb: action.Delete, Resource: secrets}}
	for _, of := range []action.PatchType{action.ApplyPatch, action.MergePatch, action.StrategicMergePatch, action.JSONPatch} {
		changes = append(changes, action.Action{Verb: action.Patch, Resource: secrets, Options: action.Options{PatchType: of}})
	}
	for _, a := range changes {
		for _, row := range []struct{ reason, message, want string }{
			{"Invalid", `Secret "db" is invalid: data: hunter2`, "Invalid (code 422); its words are left out, because they can repeat a secret value"},
			{"BadRequest", `unknown field "hunter 2" in hunter2`, "BadRequest (code 422); its words are left out, because they can repeat a secret value"},
			{"BadRequest", `strict decoding error: unknown field "stringdata", hunter2`, `BadRequest (code 422); its words are left out, because they can repeat a secret value: unknown field "stringdata"`},
			{"", `failed: .stringdata: field not declared in schema, hunter2`, ` (code 422); its words are left out, because they can repeat a secret value: .stringdata: field not declared in schema`},
			{"AlreadyExists", `secrets "db" already exists`, `secrets "db" already exists`},
			{"NotFound", `secrets "db" not found`, `secrets "db" not found`},
		} {
			err := withoutValues(a, &gate.APIError{Code: 422, Reason: row.reason, Message: row.message})
			var refused *gate.APIError
			if err.Error() != row.want || !errors.As(err, &refused) || refused.Code != 422 || refused.Reason != row.reason {
				t.Errorf("%s %s: %v; want %s", a, a.Options.PatchType, err, row.want)
			}
		}
	}
	other := action.Action{Verb: action.Create, Resource: action.Resource{Version: "v1", Resource: "configmaps"}}
	if err := withoutValues(other, &gate.APIError{Message: "what is wrong"}); err.Error() != "what is wrong" {
		t.Errorf("of another kind: %v", err)
	}
	if err := withoutValues(changes[0], io.EOF); !errors.Is(err, io.EOF) {
		t.Errorf("no answer: %v", err)
	}
}

// What does not fit is said, and not what the object holds.
func TestWithoutObject(t *testing.T) {
	patch := action.Action{Verb: action.Patch, Resource: action.Resource{Version: "v1", Resource: "pods"}}
	quoted := func(detail string) string {
		return fmt.Sprintf(` "" is invalid: patch: Invalid value: %q%s`, `{"data":{"a":"hunter2 \": unknown"}}`, detail)
	}
	for _, row := range []struct{ message, want string }{
		{quoted(`: strict decoding error: unknown field "spec.a"`), `"" is invalid: patch: Invalid value: strict decoding error: unknown field "spec.a"`},
		{quoted(""), `"" is invalid: patch: Invalid value:`},
		{`patch: Invalid value: {"a":"hunter2"}: no`, `patch: Invalid value: (left out)`},
		{`Deployment "web" is invalid: spec.replicas: Invalid value: -1`, `Deployment "web" is invalid: spec.replicas: Invalid value: -1`},
	} {
		err := withoutObject(patch, &gate.APIError{Code: 422, Reason: "Invalid", Message: row.message})
		var refused *gate.APIError
		if err.Error() != row.want || !errors.As(err, &refused) || refused.Code != 422 || refused.Reason != "Invalid" {
			t.Errorf("%s: %v; want %s", row.message, err, row.want)
		}
	}
}

func TestHint(t *testing.T) {
	a := action.Action{Verb: action.Patch, Options: action.Options{PatchType: action.StrategicMergePatch}}
	words := &gate.APIError{Code: 415, Reason: "UnsupportedMediaType", Message: "unknown format"}
	if got, want := withHint(a, words).Error(), "unknown format: only built-in kinds take a strategic merge patch; use type merge"; got != want {
		t.Errorf("got %s; want %s", got, want)
	}
	a.Options.PatchType = action.JSONPatch
	if got := withHint(a, words).Error(); got != "unknown format" {
		t.Errorf("of another patch: %s", got)
	}
}
