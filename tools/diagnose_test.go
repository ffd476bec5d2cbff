package tools

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/fields"

	"countersign/action"
)

const (
	deployMeta = `"metadata":{"name":"web","namespace":"shop","uid":"d","generation":2},"spec":{"replicas":2,"selector":{"matchLabels":{"app":"web"}}}`
	setOfWeb   = `{"items":[{"metadata":{"name":"web-1","uid":"s","creationTimestamp":"2026-03-14T11:00:00Z","annotations":{"deployment.kubernetes.io/revision":"4"},"ownerReferences":[{"kind":"Deployment","name":"web","uid":"d","controller":true}]},
		"spec":{"replicas":2,"template":{"spec":{"containers":[{"name":"app","image":"web:1"}]}}},"status":{"replicas":2}},
		{"metadata":{"name":"web-0","uid":"old","ownerReferences":[{"kind":"Deployment","name":"web","uid":"d","controller":true}]},"spec":{"replicas":0}}]}`
	deployKey = "get deployments.apps shop/web"
	podsKey   = "list pods in namespace shop"
	setsKey   = "list replicasets.apps in namespace shop"
	eventsKey = "list events in namespace shop"
	ready     = `"conditions":[{"type":"Ready","status":"True"}],"containerStatuses":[{"name":"app","image":"web:1","ready":true,"state":{"running":{"startedAt":"2026-03-14T11:00:00Z"}}}]`
)

func podOf(name, spec, status string) string {
	return fmt.Sprintf(`{"metadata":{"name":%q,"namespace":"shop","uid":%q,"creationTimestamp":"2026-03-14T11:00:00Z","ownerReferences":[{"kind":"ReplicaSet","uid":"s","controller":true}]},"spec":{%s},"status":{%s}}`, name, name, spec, status)
}

func waiting(reason, message, more string) string {
	return fmt.Sprintf(`"phase":"Pending","conditions":[{"type":"Ready","status":"False"}],"containerStatuses":[{"name":"app","image":"web:1","ready":false,"state":{"waiting":{"reason":%q,"message":%q}}%s}]`, reason, message, more)
}

// deployed is the Deployment web, of which so many pods are up to date, ready and
// available.
func deployed(updated, ready, available int, more string) string {
	return fmt.Sprintf(`{%s,"status":{"observedGeneration":2,"replicas":2,"updatedReplicas":%d,"readyReplicas":%d,"availableReplicas":%d%s}}`, deployMeta, updated, ready, available, more)
}

// ran is a container that runs and has ended before.
func ran(restarts int, exit string) string {
	return fmt.Sprintf(`"phase":"Running","conditions":[{"type":"Ready","status":"True"}],"containerStatuses":[{"name":"app","image":"web:1","ready":true,"restartCount":%d,
		"state":{"running":{"startedAt":"2026-03-14T11:40:00Z"}},"lastState":{"terminated":{%s}}}]`, restarts, exit)
}

func items(list ...string) string { return `{"items":[` + strings.Join(list, ",") + `]}` }

func eventOf(kind, name, level, reason, message string) string {
	uid := name // as podOf gives it
	switch kind {
	case "Deployment":
		uid = "d"
	case "ReplicaSet":
		uid = "s"
	}
	return fmt.Sprintf(`{"metadata":{"namespace":"shop"},"involvedObject":{"kind":%q,"name":%q,"uid":%q},"type":%q,"reason":%q,"message":%q,"lastTimestamp":"2026-03-14T11:59:00Z"}`, kind, name, uid, level, reason, message)
}

// selecting answers a list of events as the API server does: with those that
// the field selector takes.
type selecting struct {
	*holding
	t testing.TB
}

func (s selecting) Read(ctx context.Context, a action.Action) (Response, error) {
	response, err := s.holding.Read(ctx, a)
	if err != nil || a.Resource != eventsV1 {
		return response, err
	}
	selector, err := fields.ParseSelector(a.Options.FieldSelector)
	if err != nil {
		s.t.Fatal(err)
	}
	var list, taken struct {
		Items []map[string]any `json:"items"`
	}
	if err := json.Unmarshal(response.Body, &list); err != nil {
		s.t.Fatal(err)
	}
	for _, e := range list.Items {
		about := e["involvedObject"].(map[string]any)
		set := fields.Set{"type": fmt.Sprint(e["type"])}
		for _, key := range []string{"kind", "name", "uid"} {
			set["involvedObject."+key], _ = about[key].(string)
		}
		if selector.Matches(set) {
			taken.Items = append(taken.Items, e)
		}
	}
	response.Body, err = json.Marshal(taken)
	return response, err
}

// diagnose is what diagnose_workload answers in the cluster of goodCalls with
// some more in it.
func diagnose(t *testing.T, args string, more ...string) (string, error) {
	t.Helper()
	of := tool(t, "diagnose_workload")
	answers := maps.Clone(inCluster)
	for i := 0; i < len(more); i += 2 {
		answers[more[i]] = more[i+1]
	}
	decoded, err := of.Decode([]byte(args))
	if err != nil {
		return "", err
	}
	call, err := of.Plan(t.Context(), selecting{held(t, of, answers), t}, decoded)
	return call.Answer, err
}

// The first line says what is wrong; what follows shows it.
func TestDiagnose(t *testing.T) {
	const deployment = `{"kind":"deployment","namespace":"shop","name":"web"}`
	well := podOf("web-a", `"nodeName":"n1"`, `"phase":"Running",`+ready)
	other := podOf("web-z", `"nodeName":"n1"`, `"phase":"Running",`+ready)
	const limited = `"containers":[{"name":"app","resources":{"limits":{"memory":"64Mi"}}}]`
	unscheduled := func(message string) string {
		return fmt.Sprintf(`"phase":"Pending","conditions":[{"type":"PodScheduled","status":"False","reason":"Unschedulable","message":%q}]`, message)
	}
	unwell := func(status string) []string {
		return []string{podsKey, items(podOf("web-b", `"nodeName":"n1"`, status), well)}
	}
	for _, row := range []struct {
		name, args string
		more       []string
		first      string
		says       []string
		never      string
	}{
		{"healthy", deployment, []string{deployKey, deployed(2, 2, 2, ""), podsKey, items(well, podOf("web-b", "", `"phase":"Running",`+ready))},
			"Deployment shop/web looks healthy: 2 of 2 pods are well.", []string{"  ReplicaSet web-1 (revision 4): wants 2, ready 0, images web:1\n", "  Pod web-a: Running, ready true, node n1, age 60m\n"}, "log of"},
		{"killed for its memory", deployment, append(unwell(waiting("CrashLoopBackOff", "back-off 5m0s", `,"restartCount":12,"lastState":{"terminated":{"exitCode":137,"reason":"OOMKilled"}}`)),
			"get pods/log shop/web-b", "starting\nallocating\n"),
			"Deployment shop/web: 1 of 2 pods not ready: container app CrashLoopBackOff, last exit 137 OOMKilled, 12 restarts",
			[]string{"Last lines of the log of container app of pod web-b, its previous run:\nstarting\nallocating\n"}, ""},
		{"no image", deployment, unwell(waiting("ImagePullBackOff", `Back-off pulling image "web:1"`, "")),
			`Deployment shop/web: 1 of 2 pods not ready: container app ImagePullBackOff: Back-off pulling image "web:1"`, nil, "log of"},
		{"no image, at first", deployment, unwell(waiting("ErrImagePull", "not found", "")), "Deployment shop/web: 1 of 2 pods not ready: container app ErrImagePull: not found", nil, ""},
		{"no Secret", deployment, unwell(waiting("CreateContainerConfigError", `secret "db" not found`, "")),
			`Deployment shop/web: 1 of 2 pods not ready: container app CreateContainerConfigError: secret "db" not found`, nil, ""},
		{"the same of two pods", deployment, []string{podsKey, items(podOf("web-b", "", waiting("ErrImagePull", "not found", "")), podOf("web-c", "", waiting("ErrImagePull", "not found", "")))},
			"Deployment shop/web: 2 of 2 pods not ready: container app ErrImagePull: not found", nil, ""},
		{"not scheduled", deployment, unwell(`"phase":"Pending","conditions":[{"type":"PodScheduled","status":"False","reason":"Unschedulable","message":"0/3 nodes are available: 3 Insufficient cpu."}]`),
			"Deployment shop/web: 1 of 2 pods not ready: not scheduled (Unschedulable): 0/3 nodes are available: 3 Insufficient cpu.", nil, ""},
		{"evicted", deployment, unwell(`"phase":"Failed","reason":"Evicted","message":"The node was low on resource: memory."`),
			"Deployment shop/web: 1 of 2 pods not ready: 1 earlier pod Evicted: The node was low on resource: memory.", nil, ""},
		{"a probe that fails", deployment, append(unwell(`"phase":"Running","conditions":[{"type":"Ready","status":"False"}],"containerStatuses":[{"name":"app","ready":false,"state":{"running":{"startedAt":"2026-03-14T11:58:00Z"}}}]`),
			eventsKey, items(eventOf("Pod", "web-b", "Warning", "Unhealthy", "Readiness probe failed: connection refused"))),
			"Deployment shop/web: 1 of 2 pods not ready: a probe fails: Readiness probe failed: connection refused", []string{"- container app runs but is not ready\n", "Events:\n60s", "Warning Unhealthy Pod/web-b"}, ""},
		{"an init container", deployment, unwell(`"phase":"Pending","initContainerStatuses":[{"name":"setup","state":{"terminated":{"exitCode":1,"reason":"Error"}}}],"containerStatuses":[{"name":"app","state":{"waiting":{"reason":"PodInitializing"}}}]`),
			"Deployment shop/web: 1 of 2 pods not ready: init container setup ended, exit 1", nil, ""},
		{"a volume", deployment, append(unwell(`"phase":"Pending","containerStatuses":[{"name":"app","state":{"waiting":{"reason":"ContainerCreating"}}}]`),
			eventsKey, items(eventOf("Pod", "web-b", "Warning", "FailedMount", `configmap "settings" not found`))),
			"Deployment shop/web: 1 of 2 pods not ready: FailedMount of Pod/web-b: configmap \"settings\" not found", []string{"- not ready, phase Pending\n", "Warning FailedMount Pod/web-b: as above\n"}, ""},
		{"no quota", deployment, []string{podsKey, items(well), deployKey, `{` + deployMeta + `,"status":{"observedGeneration":2,"conditions":[{"type":"ReplicaFailure","status":"True","reason":"FailedCreate","message":"exceeded quota: few"}]}}`},
			"Deployment shop/web: 1 of 2 pods not ready: pods cannot be created (FailedCreate): exceeded quota: few", nil, ""},
		{"over its deadline", deployment, []string{podsKey, items(well), deployKey, `{` + deployMeta + `,"status":{"observedGeneration":2,"conditions":[{"type":"Progressing","status":"False","reason":"ProgressDeadlineExceeded","message":"has timed out"}]}}`},
			"Deployment shop/web: 1 of 2 pods not ready: the rollout is over its deadline (ProgressDeadlineExceeded): has timed out", nil, ""},
		{"paused and to nothing", deployment, []string{podsKey, items(), deployKey, `{"metadata":{"name":"web","uid":"d"},"spec":{"replicas":0,"paused":true,"selector":{"matchLabels":{"app":"web"}}}}`},
			"Deployment shop/web: the Deployment is paused: changes of its template are not rolled out until resume_rollout", []string{"- no replicas are wanted: it is scaled to zero"}, ""},
		{"a selector that takes nothing", deployment, []string{podsKey, items()}, "Deployment shop/web: 2 of 2 pods not ready: there is no pod that its selector app=web takes", nil, ""},
		{"pods of somebody else", deployment, []string{podsKey, items(strings.Replace(well, `"uid":"s"`, `"uid":"x"`, 1))}, "Deployment shop/web: 2 of 2 pods not ready: the 1 pods that its selector takes belong to something else", nil, ""},
		{"a change that is not seen yet", deployment, []string{podsKey, items(well, well), deployKey, `{` + deployMeta + `,"status":{"observedGeneration":1}}`},
			"Deployment shop/web: its controller has not taken up the latest change yet (generation 1 of 2)", nil, ""},
		{"a node that is not ready", deployment, append(unwell(`"phase":"Running","conditions":[{"type":"Ready","status":"False"}]`),
			"get nodes n1", `{"status":{"conditions":[{"type":"Ready","status":"Unknown","reason":"NodeStatusUnknown","message":"Kubelet stopped posting node status."}]}}`),
			"Deployment shop/web: 1 of 2 pods not ready: node n1 is not ready (NodeStatusUnknown): Kubelet stopped posting node status.",
			[]string{"- not ready, phase Running: its node has not said anything about its containers\n"}, ""},
		{"a node that may not be read", deployment, append(unwell(`"phase":"Running","conditions":[{"type":"Ready","status":"False"}]`), "nodes", "denied"),
			"Deployment shop/web: 1 of 2 pods not ready: ", nil, "node n1 is"},
		{"pods that may not be read", deployment, []string{podsKey, "not JSON"}, "Deployment shop/web: 1 of 2 pods are ready; they could not be read themselves", nil, ""},
		{"well, as far as it can be told", deployment, []string{podsKey, "not JSON", deployKey, deployed(2, 2, 2, "")},
			"Deployment shop/web: nothing looks wrong with it, but its pods could not be read.", nil, ""},
		{"a Job", `{"kind":"job","namespace":"shop","name":"load"}`, []string{podsKey, items(), "get jobs.batch shop/load",
			`{"metadata":{"name":"load","uid":"j"},"spec":{"selector":{"matchLabels":{"a":"b"}}},"status":{"failed":3,"conditions":[{"type":"Failed","status":"True","reason":"BackoffLimitExceeded","message":"Job has reached the specified backoff limit"}]}}`},
			"Job shop/load: the Job has failed (BackoffLimitExceeded): Job has reached the specified backoff limit", []string{"active 0, succeeded 0, failed 3"}, ""},
		{"a Job that is done", `{"kind":"job","namespace":"shop","name":"load"}`, []string{podsKey, items(), "get jobs.batch shop/load",
			`{"metadata":{"name":"load","uid":"j"},"spec":{"selector":{"matchLabels":{"a":"b"}}},"status":{"succeeded":1,"conditions":[{"type":"Complete","status":"True"}]}}`},
			"Job shop/load is complete.", nil, ""},
		{"a pod on its way out", `{"kind":"pod","namespace":"shop","name":"web-1"}`, []string{"get pods shop/web-1",
			`{"metadata":{"name":"web-1","deletionTimestamp":"2026-03-14T12:00:20Z"},"status":{` + waiting("CrashLoopBackOff", "", "") + `}}`},
			"Pod shop/web-1 is being deleted", []string{"Pod web-1: Pending, being deleted"}, "Last lines"},
		{"a pod", `{"kind":"pod","namespace":"shop","name":"web-1"}`, []string{"get pods shop/web-1", podOf("web-1", "", waiting("CrashLoopBackOff", "", ""))}, "Pod shop/web-1: 1 of 1 pods not ready: container app CrashLoopBackOff", nil, ""},
		{"a pod that does not go", `{"kind":"pod","namespace":"shop","name":"web-1"}`, []string{"get pods shop/web-1",
			`{"metadata":{"name":"web-1","deletionTimestamp":"2026-03-14T11:30:00Z","finalizers":["example.com/wait"]},"status":{"phase":"Running",` + ready + `}}`},
			"Pod shop/web-1 is being deleted, waits for finalizers example.com/wait, should have gone 30m ago", nil, "What else"},
		{"a StatefulSet", `{"kind":"statefulset","namespace":"shop","name":"db"}`, []string{podsKey, items(), "get statefulsets.apps shop/db", `{"metadata":{"name":"db","uid":"x"},"spec":{"replicas":1,"selector":{"matchLabels":{"a":"b"}}}}`},
			"StatefulSet shop/db: 1 of 1 pods not ready: there is no pod that its selector a=b takes", nil, ""},
		{"a DaemonSet without nodes", `{"kind":"daemonset","namespace":"shop","name":"agent"}`, []string{podsKey, items(), "get daemonsets.apps shop/agent", `{"metadata":{"name":"agent","uid":"x","generation":1},"spec":{"selector":{"matchLabels":{"a":"b"}}},"status":{"observedGeneration":1}}`},
			"DaemonSet shop/agent: no node fits the DaemonSet: see its nodeSelector, affinity and tolerations", nil, ""},
		// What is not over yet, or was.
		{"a rollout under way", deployment, []string{podsKey, items(well, other), deployKey, deployed(1, 2, 2, "")}, "Deployment shop/web: rollout under way: 1 of 2 updated", nil, "healthy"},
		{"the last pods of the revision before", deployment, []string{podsKey, items(well, other), deployKey, strings.Replace(deployed(2, 2, 2, ""), `"replicas":2,"updated`, `"replicas":3,"updated`, 1)},
			"Deployment shop/web: rollout under way: 1 pods of an earlier revision are still there", nil, ""},
		{"ready for too short a time", deployment, []string{podsKey, items(well, other), deployKey, strings.Replace(deployed(2, 2, 0, ""), `"spec":{`, `"spec":{"minReadySeconds":500,`, 1)},
			"Deployment shop/web: 0 of 2 available: 2 ready, but not yet for minReadySeconds 500s", nil, "What else"},
		{"not available", deployment, []string{podsKey, items(well, other), deployKey, deployed(2, 2, 2, `,"conditions":[{"type":"Available","status":"False","reason":"MinimumReplicasUnavailable","message":"does not have minimum availability"}]`)},
			"Deployment shop/web: not available (MinimumReplicasUnavailable): does not have minimum availability", nil, ""},
		{"a pod that is still to come", deployment, []string{podsKey, items(well)}, "Deployment shop/web: 1 of 2 pods not ready: some are missing or being deleted", nil, "healthy"},
		{"restarted often", deployment, []string{podsKey, items(other, podOf("web-a", limited, ran(214, `"exitCode":137,"reason":"OOMKilled","finishedAt":"2026-03-14T11:40:00Z"`))), "get pods/log shop/web-a", "filling\n"},
			"Deployment shop/web: container app has restarted 214 times, last exit 137 OOMKilled 20m ago, memory limit 64Mi", []string{"container app of pod web-a, its previous run:\nfilling\n"}, "healthy"},
		{"restarted often, beside one that is not ready", deployment, []string{podsKey, items(podOf("web-a", "", ran(9, `"exitCode":1`)), podOf("web-b", `"nodeName":"n1"`, `"phase":"Running"`))},
			"Deployment shop/web: 1 of 2 pods not ready: not ready, phase Running", []string{"- container app has restarted 9 times, last exit 1\n"}, ""},
		{"a pod that does not make room for the next", `{"kind":"statefulset","namespace":"shop","name":"db"}`, []string{podsKey, items(strings.Replace(well, `"uid":"s"`, `"uid":"x"`, 1), strings.Replace(strings.Replace(other, `"uid":"s"`, `"uid":"x"`, 1), `"creation`, `"deletionTimestamp":"2026-03-14T11:30:00Z","creation`, 1)),
			"get statefulsets.apps shop/db", `{"metadata":{"name":"db","uid":"x"},"spec":{"replicas":2,"selector":{"matchLabels":{"a":"b"}}}}`},
			"StatefulSet shop/db: 1 of 2 pods not ready: being deleted and still there: should have gone 30m ago", nil, ""},
		{"a mount that fails after a restart of the node", deployment, append(unwell(waiting("ContainerCreating", "", `,"restartCount":1,"lastState":{"terminated":{"exitCode":255}}`)),
			eventsKey, items(eventOf("Pod", "web-b", "Warning", "FailedMount", "no such volume"))), "Deployment shop/web: 1 of 2 pods not ready: FailedMount of Pod/web-b: no such volume", nil, ""},
		{"killed for its memory once, long ago", deployment, []string{podsKey, items(other, podOf("web-a", `"containers":[{"name":"app"}]`, ran(1, `"exitCode":137,"reason":"OOMKilled","finishedAt":"2026-03-13T11:40:00Z"`)))},
			"Deployment shop/web: container app has restarted once, last exit 137 OOMKilled 24h ago, no memory limit", nil, ""},
		{"restarted once, long ago", deployment, []string{podsKey, items(other, podOf("web-a", "", ran(1, `"exitCode":1,"finishedAt":"2026-03-13T11:40:00Z"`))), deployKey, deployed(2, 2, 2, "")},
			"Deployment shop/web looks healthy: 2 of 2 pods are well.", nil, ""},
		{"serving, with an earlier pod evicted", deployment, []string{podsKey, items(well, other, podOf("web-c", "", `"phase":"Failed","reason":"Evicted","message":"The node was low on resource: memory."`)), deployKey, deployed(2, 2, 2, "")},
			"Deployment shop/web: 2 of 2 available; 1 earlier pod Evicted: The node was low on resource: memory.", nil, "not ready"},
		{"a Deployment that does not go", deployment, []string{podsKey, items(), deployKey, strings.Replace(deployed(2, 2, 2, ""), `"uid":"d"`, `"uid":"d","deletionTimestamp":"2026-03-14T11:59:50Z","finalizers":["foregroundDeletion"]`, 1)},
			"Deployment shop/web is being deleted, waits for finalizers foregroundDeletion", nil, ""},
		{"a StatefulSet in a rollout", `{"kind":"sts","namespace":"shop","name":"db"}`, []string{podsKey, items(strings.Replace(well, `"uid":"s"`, `"uid":"x"`, 1)), "get statefulsets.apps shop/db",
			`{"metadata":{"name":"db","uid":"x"},"spec":{"replicas":1,"selector":{"matchLabels":{"a":"b"}}},"status":{"readyReplicas":1,"availableReplicas":1,"currentRevision":"1","updateRevision":"2"}}`},
			"StatefulSet shop/db: rollout under way: 0 of 1 updated", nil, ""},
		{"a DaemonSet in a rollout", `{"kind":"DaemonSets","namespace":"shop","name":"agent"}`, []string{podsKey, items(strings.Replace(well, `"uid":"s"`, `"uid":"x"`, 1)), "get daemonsets.apps shop/agent",
			`{"metadata":{"name":"agent","uid":"x"},"spec":{"selector":{"matchLabels":{"a":"b"}}},"status":{"desiredNumberScheduled":1,"numberReady":1,"numberAvailable":1}}`},
			"DaemonSet shop/agent: rollout under way: 0 of 1 updated", nil, ""},

		// What explains comes before what follows from it.
		{"what a container said at its end", deployment, unwell(waiting("CrashLoopBackOff", "back-off 5m0s", `,"restartCount":3,"lastState":{"terminated":{"exitCode":1,"finishedAt":"2026-03-14T11:58:00Z","message":"FATAL: cannot connect\nto db:5432 with `+token+`"}}`)),
			"Deployment shop/web: 1 of 2 pods not ready: container app CrashLoopBackOff, last exit 1 2m ago, 3 restarts: FATAL: cannot connect to db:5432 with ***", nil, token},
		{"a crash behind a container that waits for it", deployment, unwell(`"phase":"Running","conditions":[{"type":"Ready","status":"False"}],"containerStatuses":[{"name":"app","state":{"running":{}}},{"name":"db","state":{"waiting":{"reason":"CrashLoopBackOff"}}}]`),
			"Deployment shop/web: 1 of 2 pods not ready: container db CrashLoopBackOff", nil, ""},
		{"a mount that has come to pass", deployment, append(unwell(`"phase":"Running","conditions":[{"type":"Ready","status":"False"}],"containerStatuses":[{"name":"app","ready":false,"state":{"running":{}}}]`),
			eventsKey, items(eventOf("Pod", "web-b", "Warning", "FailedMount", "not yet"))), "Deployment shop/web: 1 of 2 pods not ready: container app runs but is not ready", nil, "- FailedMount"},
		{"events of another of that name", deployment, append(unwell(`"phase":"Pending"`), eventsKey, items(
			strings.Replace(eventOf("Pod", "web-b", "Warning", "FailedMount", "the old one"), `"uid":"web-b"`, `"uid":"before"`, 1),
			strings.Replace(eventOf("Deployment", "web", "Warning", "Old", "the old one"), `"uid":"d"`, `"uid":"before"`, 1),
			strings.Replace(eventOf("ReplicaSet", "web-1", "Warning", "Old", "the old one"), `"uid":"s"`, `"uid":"before"`, 1),
			eventOf("ReplicaSet", "web-1", "Normal", "New", "the new one"))),
			"Deployment shop/web: 1 of 2 pods not ready: not ready, phase Pending", []string{"Normal New ReplicaSet/web-1: the new one\n"}, "the old one"},
		{"not scheduled, once", deployment, append(unwell(unscheduled("0/3 nodes are available.")), eventsKey, items(eventOf("Pod", "web-b", "Warning", "FailedScheduling", "0/3 nodes are available."))),
			"Deployment shop/web: 1 of 2 pods not ready: not scheduled (Unschedulable): 0/3 nodes are available.", []string{"Warning FailedScheduling Pod/web-b: as above\n"}, "- "},
		{"a claim that is not bound", deployment, []string{podsKey, items(podOf("web-b", `"volumes":[{"name":"v","persistentVolumeClaim":{"claimName":"data"}}]`, unscheduled("pod has unbound immediate PersistentVolumeClaims.")), well),
			eventsKey, items(eventOf("PersistentVolumeClaim", "data", "Normal", "FailedBinding", "no storage class is set"))},
			"Deployment shop/web: 1 of 2 pods not ready: PersistentVolumeClaim data, FailedBinding: no storage class is set", []string{"- not scheduled (Unschedulable): pod has unbound"}, ""},
		{"a claim that says nothing", deployment, []string{podsKey, items(podOf("web-b", `"volumes":[{"name":"v","ephemeral":{}}]`, unscheduled("pod has unbound immediate PersistentVolumeClaims.")), well)},
			"Deployment shop/web: 1 of 2 pods not ready: not scheduled (Unschedulable): pod has unbound", []string{"- its PersistentVolumeClaim web-b-v may not be bound: see describe_resource of it\n"}, ""},
		{"pods that cannot be created", deployment, []string{podsKey, items(), eventsKey, items(
			eventOf("ReplicaSet", "web-1", "Warning", "FailedCreate", `Error creating: pods "web-1-x7k2p" is forbidden: exceeded quota`),
			eventOf("ReplicaSet", "web-1", "Warning", "FailedCreate", `Error creating: pods "web-1-bcd42" is forbidden: exceeded quota`))},
			`Deployment shop/web: 2 of 2 pods not ready: FailedCreate of ReplicaSet/web-1: Error creating: pods "web-1-x7k2p" is forbidden: exceeded quota`, []string{"  Warning FailedCreate ReplicaSet/web-1: as above\n"}, "selector"},
		{"a Job that has given up", `{"kind":"jobs.batch","namespace":"shop","name":"load"}`, []string{podsKey, items(
			strings.Replace(podOf("load-a", "", unscheduled("0/3 nodes are available.")), `"uid":"s"`, `"uid":"j"`, 1),
			strings.Replace(podOf("load-b", `"nodeName":"n1"`, `"phase":"Failed","containerStatuses":[{"name":"app","state":{"terminated":{"exitCode":3,"message":"no such table"}}}]`), `"uid":"s"`, `"uid":"j"`, 1)),
			"get jobs.batch shop/load", `{"metadata":{"name":"load","uid":"j"},"spec":{"selector":{"matchLabels":{"a":"b"}}},"status":{"failed":1,"conditions":[{"type":"Failed","status":"True","reason":"BackoffLimitExceeded","message":"Job has reached the specified backoff limit"}]}}`},
			"Job shop/load: the Job has failed (BackoffLimitExceeded): Job has", []string{"What else looks wrong:\n- container app ended, exit 3: no such table\n- not scheduled (Unschedulable)"}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			more := append([]string{deployKey, `{` + deployMeta + `,"status":{"observedGeneration":2,"replicas":2,"updatedReplicas":2,"readyReplicas":1,"availableReplicas":1}}`, setsKey, setOfWeb, eventsKey, items(), "get nodes n1", "{}"}, row.more...)
			text, err := diagnose(t, row.args, more...)
			if err != nil {
				t.Fatal(err)
			}
			if first, _, _ := strings.Cut(text, "\n"); !strings.HasPrefix(first, row.first) {
				t.Errorf("the first line is\n%s\nwant\n%s", first, row.first)
			}
			says(t, text, row.says...)
			if row.never != "" && strings.Contains(text, row.never) {
				t.Errorf("%q is in\n%s", row.never, text)
			}
			if len(text) > maxDiagnosis {
				t.Errorf("%d bytes", len(text))
			}
		})
	}
}

// However much there is, a diagnosis stays small, begins with what matters, and
// shows no secret.
func TestDiagnoseCuts(t *testing.T) {
	var list, told []string
	for i := range 400 {
		list = append(list, podOf(fmt.Sprintf("web-%d", i), "", waiting("ErrImagePull", fmt.Sprintf("no image %d %s", i, strings.Repeat("x", 500)), "")))
		told = append(told, eventOf("Pod", "web-1", "Warning", fmt.Sprint("R", i), strings.Repeat("y", 1000)))
	}
	text, err := diagnose(t, `{"kind":"deployment","namespace":"shop","name":"web"}`,
		deployKey, `{`+deployMeta+`}`, setsKey, setOfWeb, podsKey, items(list...), eventsKey, items(told...), "get pods/log shop/web-0", strings.Repeat("token "+token+"\n", 200))
	if err != nil || len(text) > maxDiagnosis || strings.Contains(text, token[30:60]) {
		t.Errorf("%d bytes, %v", len(text), err)
	}
	says(t, text, "Deployment shop/web: 400 of 400 pods not ready: ", "- and 388 more\n", "token ***\n", "\nEvents:\n", " more: see list_events\n")
	long := waiting("CrashLoopBackOff", "", `,"lastState":{"terminated":{"exitCode":1}}`)
	text, err = diagnose(t, `{"kind":"pod","namespace":"shop","name":"web-1"}`, "get pods shop/web-1", podOf("web-1", "", long),
		eventsKey, items(), "get pods/log shop/web-1", strings.Repeat("token "+token+"\n", 200))
	says(t, text, "its previous run:\n", "token ***\n")
	if err != nil || strings.Contains(text, token[30:60]) || len(text) > 4<<10 {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

// Many pods of many containers in the same trouble leave room for what explains
// it: it is told once, and containers are shown of two of them.
func TestDiagnoseMany(t *testing.T) {
	var list, told []string
	for i := range 8 {
		name := fmt.Sprintf("web-%d", i)
		var containers []string
		for c := range 6 {
			image := fmt.Sprintf("registry.example/%s:%d", strings.Repeat("team/", 10), c)
			containers = append(containers, fmt.Sprintf(`{"name":"c%d","image":%q,"ready":false,"restartCount":%d,"state":{"waiting":{"reason":"CrashLoopBackOff","message":"back-off of pod %s"}}}`, c, image, i+1, name))
		}
		list = append(list, podOf(name, `"nodeName":"n1"`, `"phase":"Running","conditions":[{"type":"Ready","status":"False"}],"containerStatuses":[`+strings.Join(containers, ",")+`]`))
		told = append(told, eventOf("Pod", name, "Warning", "BackOff", "of "+name+strings.Repeat(" and so on", 20)))
	}
	text, err := diagnose(t, `{"kind":"deployment","namespace":"shop","name":"web"}`, deployKey, deployed(2, 0, 0, ""), setsKey, setOfWeb, podsKey, items(list...),
		eventsKey, items(told...), "get pods/log shop/web-7", strings.Repeat(strings.Repeat("y", 80)+"\n", 100)+"the last line\n")
	if err != nil || len(text) > maxDiagnosis {
		t.Errorf("%d bytes, %v", len(text), err)
	}
	says(t, text, "Deployment shop/web: 8 of 8 pods not ready: container c0 CrashLoopBackOff, 8 restarts: back-off of pod <pod>\n", "the last line\n\nEvents:\n", "Warning BackOff Pod/web-5: ")
	if n := strings.Count(text, "    container c5: "); n != 2 || strings.Contains(text, "What else") {
		t.Errorf("the containers of %d pods are in\n%s", n, text)
	}
	// Of several troubles, each says how many pods it is of.
	text, err = diagnose(t, `{"kind":"deployment","namespace":"shop","name":"web"}`, deployKey, deployed(2, 0, 0, ""), setsKey, setOfWeb, podsKey, items(
		podOf("web-a", "", waiting("ErrImagePull", "no image for web-a", "")), podOf("web-b", "", waiting("ErrImagePull", "no image for web-b", "")), podOf("web-c", "", waiting("CrashLoopBackOff", "", `,"restartCount":1`))))
	if err != nil {
		t.Error(err)
	}
	says(t, text, "Deployment shop/web: 3 of 3 pods not ready: container app CrashLoopBackOff, 1 restart\n", "- 2 pods: container app ErrImagePull: no image for <pod>\n")
}

// A kind goes by the names that people give it.
func TestDiagnoseKinds(t *testing.T) {
	for _, kind := range []string{"Deployment", "deploy", "deployments", "DEPLOYMENTS.apps"} {
		text, err := diagnose(t, `{"kind":"`+kind+`","namespace":"shop","name":"web"}`)
		if err != nil || !strings.HasPrefix(text, "Deployment shop/web") {
			t.Errorf("%s: %q, %v", kind, text, err)
		}
	}
	for kind, want := range map[string]string{
		"CronJob": "a CronJob has no pods of its own: diagnose one of its Jobs",
		"svc":     "argument kind is not one of [pod deployment",
	} {
		if _, err := diagnose(t, `{"kind":"`+kind+`","namespace":"shop","name":"web"}`); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}
