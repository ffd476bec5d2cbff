package e2e

import (
	"context"
	"errors"
	"testing"
	"time"

	"countersign/gate"
	"countersign/kube"
)

// What rules know of a namespace is what the API server says of it now, without
// bookkeeping; where there is none, that is no error.
func TestNamespace(t *testing.T) {
	ctx := context.Background()
	name, err := newNamespace(ctx)
	if err != nil {
		t.Fatal(err)
	}
	clusters, err := kube.New([]kube.Config{{Name: "local", Kubeconfig: world.cluster.Kubeconfig}}, "test", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	object, err := clusters.Namespace(ctx, nil, "local", name, "audit-1")
	meta, _ := object["metadata"].(map[string]any)
	labels, _ := meta["labels"].(map[string]any)
	if err != nil || meta["name"] != name || labels["kubernetes.io/metadata.name"] != name || meta["managedFields"] != nil {
		t.Errorf("got %v, %v", object, err)
	}
	if object, err := clusters.Namespace(ctx, nil, "local", name+"-other", "audit-2"); object != nil || err != nil {
		t.Errorf("one that is not there: %v, %v", object, err)
	}
	for _, row := range [][2]string{{"elsewhere", name}, {"local", ""}} {
		if object, err := clusters.Namespace(ctx, nil, row[0], row[1], "audit-3"); object != nil || !errors.Is(err, gate.ErrNotSent) {
			t.Errorf("%q in cluster %s: %v, %v", row[1], row[0], object, err)
		}
	}
}
