package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"countersign/action"
	"countersign/gate"
	"countersign/kube"
	"countersign/tools"
)

// No operation of a JSON Patch takes away the version that the request is to
// meet: what copies from a field that changes between the look and the request is
// refused by the API server, whatever else the patch does.
func TestPatchMeetsWhatWasSeen(t *testing.T) {
	ctx := t.Context()
	namespace, err := newNamespace(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer leave(namespace)
	clusters, err := kube.New([]kube.Config{{Name: "local", Kubeconfig: world.cluster.Kubeconfig}}, "test", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	annotate := func(next string) {
		t.Helper()
		if _, err := world.cluster.Run(context.Background(), "", "annotate", "--overwrite", "deploy", "web", "-n", namespace, "next="+next); err != nil {
			t.Fatal(err)
		}
	}
	var patch *tools.Tool
	for _, tool := range tools.All([]string{"local"}) {
		if tool.Name == "patch_resource" {
			patch = tool
		}
	}
	caller, sent := &action.Principal{Username: "test"}, 0
	for _, more := range []string{
		``, `,{"op":"remove","path":"/metadata/resourceVersion"}`, `,{"op":"replace","path":"/metadata/resourceVersion","value":""}`,
		`,{"op":"move","from":"/metadata/resourceVersion","path":"/metadata/labels/x"}`, `,{"op":"copy","from":"/metadata/name","path":"/metadata/resourceVersion"}`,
	} {
		annotate("registry.example/good:2")
		raw, err := json.Marshal(map[string]any{"kind": "deployment", "namespace": namespace, "name": "web", "type": "json",
			"patch": `[{"op":"copy","from":"/metadata/annotations/next","path":"/spec/template/spec/containers/0/image"}` + more + `]`})
		if err != nil {
			t.Fatal(err)
		}
		args, err := patch.Decode(raw)
		if err != nil {
			t.Fatal(err)
		}
		call, err := patch.Plan(ctx, tools.Offline(clusters, time.Now()), args)
		if err != nil {
			continue // it is refused before
		}
		a := call.Plan.Actions[0]
		a.Cluster = "local"
		seen, err := clusters.Preview(ctx, caller, a, func() string { return "precondition-test" })
		if err != nil {
			continue // the API server refuses it
		}
		sent++
		annotate("evil.example/backdoor") // between the look and the request
		_, err = clusters.Execute(ctx, caller, a, "precondition-test", gate.Live{UID: seen.UID(), ResourceVersion: seen.ResourceVersion()})
		var refused *gate.APIError
		if !errors.As(err, &refused) || refused.Code != http.StatusConflict {
			t.Errorf("with %q: %v", more, err)
		}
		image, err := world.cluster.Run(context.Background(), "", "get", "deploy", "web", "-n", namespace, "-o", "jsonpath={.spec.template.spec.containers[0].image}")
		if err != nil || strings.Contains(image, "evil") {
			t.Errorf("with %q: the image is %s, %v", more, image, err)
		}
	}
	if sent < 2 {
		t.Errorf("only %d of the patches came as far as the request", sent)
	}
}
