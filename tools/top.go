package tools

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"

	"countersign/action"
)

var nodesV1 = action.Resource{Version: "v1", Resource: "nodes", Kind: "Node"}

// metricsOf is the resource that holds the usage of pods or nodes.
func metricsOf(ctx context.Context, r Reader, cluster, of string) (action.Resource, error) {
	found, err := r.Resolve(ctx, cluster, "", of+".metrics.k8s.io")
	var argument *ArgumentError
	if errors.As(err, &argument) {
		return found, BadArgument("cluster %s does not serve the metrics API (metrics.k8s.io), so usage is not known; metrics-server provides it", cluster)
	}
	return found, err
}

// usage is what is used of cpu, in thousandths, and memory, in bytes.
type usage struct {
	namespace, name string
	cpu, memory     int64
	unknown         bool // it is there, and nobody has measured it
}

func (u *usage) add(list corev1.ResourceList) {
	u.cpu += list.Cpu().MilliValue()
	u.memory += list.Memory().Value()
}

// sortUsage puts what uses most first.
func sortUsage(all []usage, by string) {
	slices.SortStableFunc(all, func(a, b usage) int {
		first, second := cmp.Compare(b.cpu, a.cpu), cmp.Compare(b.memory, a.memory)
		if by == "memory" {
			first, second = second, first
		}
		return cmp.Or(first, second, strings.Compare(a.namespace+"/"+a.name, b.namespace+"/"+b.name))
	})
}

func cpuText(milli int64) string     { return fmt.Sprintf("%dm", milli) }
func memoryText(amount int64) string { return fmt.Sprintf("%dMi", amount>>20) }

type topPodsInput struct {
	Namespace     string `json:"namespace,omitempty"`
	AllNamespaces bool   `json:"all_namespaces,omitempty"`
	LabelSelector string `json:"label_selector,omitempty"`
	Sort          string `json:"sort,omitempty" jsonschema:"default cpu"`
	Limit         int64  `json:"limit,omitempty"`
}

func topPods() *Tool {
	scopes := []action.Scope{{Verbs: []string{action.List}, Resource: "pods.metrics.k8s.io"}}
	return define(Tool{
		Name:        "top_pods",
		Title:       "Show usage of pods",
		Description: "Shows the CPU and memory that pods use, most first.",
		Scopes:      scopes,
		Reads:       scopes,
	}, func(s *jsonschema.Schema) {
		limitRange(s)
		oneOf(s, "sort", "cpu", "memory")
	}, func(ctx context.Context, r Reader, cluster string, in topPodsInput) (Call, error) {
		if err := cmp.Or(checkWhere(pods, in.Namespace, in.AllNamespaces), checkSelectors(in.LabelSelector, "")); err != nil {
			return Call{}, err
		}
		metrics, err := metricsOf(ctx, r, cluster, "pods")
		if err != nil {
			return Call{}, err
		}
		response, err := r.Read(ctx, action.Action{
			Cluster: cluster, Verb: action.List, Resource: metrics, Namespace: in.Namespace, Options: action.Options{LabelSelector: in.LabelSelector},
		})
		if err != nil {
			return Call{}, err
		}
		text, err := podUsage(response.Body, in.Namespace == "", in.Sort, int(itemLimit(in.Limit)))
		return Call{Answer: text}, err
	}, nil)
}

func podUsage(body []byte, namespaces bool, by string, limit int) (string, error) {
	var list struct {
		Items []struct {
			Metadata   metav1.ObjectMeta `json:"metadata"`
			Containers []struct {
				Usage corev1.ResourceList `json:"usage"`
			} `json:"containers"`
		} `json:"items"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(body, &list); err != nil {
		return "", fmt.Errorf("reading the metrics: %w", err)
	}
	all := make([]usage, len(list.Items))
	for i, item := range list.Items {
		all[i] = usage{namespace: item.Metadata.Namespace, name: item.Metadata.Name}
		for _, c := range item.Containers {
			all[i].add(c.Usage)
		}
	}
	sortUsage(all, by)
	head := []string{"NAME", "CPU", "MEMORY"}
	if namespaces {
		head = slices.Insert(head, 0, "NAMESPACE")
	}
	return usageTable(all, head, limit, func(u usage) []string {
		cells := []string{u.name, cpuText(u.cpu), memoryText(u.memory)}
		if namespaces {
			cells = slices.Insert(cells, 0, u.namespace)
		}
		return cells
	}), nil
}

func usageTable(all []usage, head []string, limit int, cells func(usage) []string) string {
	if len(all) == 0 {
		return "No usage found: nothing runs there, or it is too new to have been measured."
	}
	var rows rows
	rows.add(head)
	for _, u := range all[:min(len(all), limit)] {
		if !rows.add(cells(u)) {
			break
		}
	}
	text, shown := rows.table()
	if shown < len(all) {
		text += fmt.Sprintf("The first %d of %d: see more with limit, or narrow.\n", shown, len(all))
	}
	return text
}

type topNodesInput struct {
	LabelSelector string `json:"label_selector,omitempty"`
	Sort          string `json:"sort,omitempty" jsonschema:"default cpu"`
	Limit         int64  `json:"limit,omitempty"`
}

func topNodes() *Tool {
	metricsOnly := action.Scope{Verbs: []string{action.List}, Resource: "nodes.metrics.k8s.io"}
	return define(Tool{
		Name:        "top_nodes",
		Title:       "Show usage of nodes",
		Description: "Shows the CPU and memory that nodes use, most first.",
		Scopes:      []action.Scope{metricsOnly},
		Reads:       []action.Scope{metricsOnly, {Verbs: []string{action.List}, Resource: "nodes"}},
	}, func(s *jsonschema.Schema) {
		limitRange(s)
		oneOf(s, "sort", "cpu", "memory")
	}, func(ctx context.Context, r Reader, cluster string, in topNodesInput) (Call, error) {
		if err := checkSelectors(in.LabelSelector, ""); err != nil {
			return Call{}, err
		}
		metrics, err := metricsOf(ctx, r, cluster, "nodes")
		if err != nil {
			return Call{}, err
		}
		list := action.Action{Cluster: cluster, Verb: action.List, Resource: metrics, Options: action.Options{LabelSelector: in.LabelSelector}}
		used, err := r.Read(ctx, list)
		if err != nil {
			return Call{}, err
		}
		list.Resource = nodesV1
		var nodes []byte
		if there, err := r.Read(ctx, list); err == nil { // else usage is shown without what it is a part of
			nodes = there.Body
		}
		text, err := nodeUsage(used.Body, nodes, in.Sort, int(itemLimit(in.Limit)))
		return Call{Answer: text}, err
	}, nil)
}

func nodeUsage(metrics, nodes []byte, by string, limit int) (string, error) {
	var list struct {
		Items []struct {
			Metadata metav1.ObjectMeta   `json:"metadata"`
			Usage    corev1.ResourceList `json:"usage"`
		} `json:"items"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(metrics, &list); err != nil {
		return "", fmt.Errorf("reading the metrics: %w", err)
	}
	var there struct {
		Items []struct {
			Metadata metav1.ObjectMeta `json:"metadata"`
			Status   struct {
				Allocatable map[corev1.ResourceName]resource.Quantity `json:"allocatable"`
			} `json:"status"`
		} `json:"items"`
	}
	if nodes != nil {
		if err := kjson.UnmarshalCaseSensitivePreserveInts(nodes, &there); err != nil {
			return "", fmt.Errorf("reading the nodes: %w", err)
		}
	}
	allocatable := map[string]usage{}
	for _, node := range there.Items {
		var u usage
		u.add(node.Status.Allocatable)
		allocatable[node.Metadata.Name] = u
	}
	all := make([]usage, len(list.Items))
	for i, item := range list.Items {
		all[i] = usage{name: item.Metadata.Name}
		all[i].add(item.Usage)
	}
	sortUsage(all, by)
	measured := map[string]bool{}
	for _, u := range all {
		measured[u.name] = true
	}
	for _, node := range there.Items {
		if !measured[node.Metadata.Name] {
			all = append(all, usage{name: node.Metadata.Name, unknown: true})
		}
	}
	if nodes == nil {
		return usageTable(all, []string{"NAME", "CPU", "MEMORY"}, limit, func(u usage) []string {
			return []string{u.name, cpuText(u.cpu), memoryText(u.memory)}
		}), nil
	}
	return usageTable(all, []string{"NAME", "CPU", "CPU%", "MEMORY", "MEMORY%"}, limit, func(u usage) []string {
		if u.unknown {
			const no = "<unknown>"
			return []string{u.name, no, no, no, no}
		}
		of := allocatable[u.name]
		return []string{u.name, cpuText(u.cpu), percent(u.cpu, of.cpu), memoryText(u.memory), percent(u.memory, of.memory)}
	}), nil
}

// percent is how much of what pods can have is used.
func percent(used, of int64) string {
	if of == 0 {
		return "?"
	}
	return fmt.Sprintf("%d%%", int64(float64(used)/float64(of)*100))
}
