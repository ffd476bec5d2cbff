package e2e

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/tools/clientcmd"
)

var update = flag.Bool("update", false, "record what the API server serves in kube/builtin.txt")

const builtinFile = "../kube/builtin.txt"

// What kube.Builtin knows without a cluster is what a real API server serves.
func TestBuiltin(t *testing.T) {
	config, err := clientcmd.BuildConfigFromFlags("", world.cluster.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	lists, err := client.ServerPreferredResources()
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	for _, list := range lists { // in the order of the groups' priority
		version, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			t.Fatal(err)
		}
		// Other tests make custom resources meanwhile.
		if strings.Contains(version.Group, ".") && !strings.HasSuffix(version.Group, ".k8s.io") {
			continue
		}
		slices.SortFunc(list.APIResources, func(a, b metav1.APIResource) int { return strings.Compare(a.Name, b.Name) })
		for _, r := range list.APIResources {
			if strings.Contains(r.Name, "/") {
				continue
			}
			group, scope := version.Group, "cluster"
			if group == "" {
				group = "-"
			}
			if r.Namespaced {
				scope = "namespaced"
			}
			names := append([]string{r.SingularName}, r.ShortNames...)
			fmt.Fprintln(&table, group, version.Version, r.Name, r.Kind, scope, strings.Join(names, ","))
		}
	}
	if *update {
		if err := os.WriteFile(builtinFile, []byte(table.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	recorded, err := os.ReadFile(builtinFile)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Split(table.String(), "\n"), strings.Split(string(recorded), "\n"); !slices.Equal(got, want) {
		for _, line := range got {
			if !slices.Contains(want, line) {
				t.Errorf("the API server serves what kube/builtin.txt does not have: %s", line)
			}
		}
		for _, line := range want {
			if !slices.Contains(got, line) {
				t.Errorf("kube/builtin.txt has what the API server does not serve: %s", line)
			}
		}
		t.Error("kube/builtin.txt differs from what the API server serves: run go test ./e2e -run TestBuiltin -update")
	}
}
