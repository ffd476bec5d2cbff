package tools

import (
	"fmt"
	"strings"
	"testing"
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

func items(list ...string) string { return `{"items":[` + strings.Join(list, ",") + `]}` }

func eventOf(kind, name, level, reason, message string) string {
	return fmt.Sprintf(`{"metadata":{"namespace":"shop"},"involvedObject":{"kind":%q,"name":%q},"type":%q,"reason":%q,"message":%q,"lastTimestamp":"2026-03-14T11:59:00Z"}`, kind, name, level, reason, message)
}

// The first line says what is wrong; what follows shows it.
func TestDiagnose(t *testing.T) {
	const deployment = `{"kind":"deployment","namespace":"shop","name":"web"}`
	well := podOf("web-a", `"nodeName":"n1"`, `"phase":"Running",`+ready)
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
		{"healthy", deployment, []string{podsKey, items(well, podOf("web-b", "", `"phase":"Running",`+ready))},
			"Deployment shop/web looks healthy: 2 of 2 pods are well.", []string{"  ReplicaSet web-1 (revision 4): wants 2, ready 0, images web:1\n", "  Pod web-a: Running, ready true, node n1, age 60m\n", "container app: running for 60m, restarts 0, image web:1"}, "log of"},
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
			"Deployment shop/web: 2 of 2 pods not ready: container app ErrImagePull: not found (2 pods)", nil, ""},
		{"not scheduled", deployment, unwell(`"phase":"Pending","conditions":[{"type":"PodScheduled","status":"False","reason":"Unschedulable","message":"0/3 nodes are available: 3 Insufficient cpu."}]`),
			"Deployment shop/web: 1 of 2 pods not ready: not scheduled (Unschedulable): 0/3 nodes are available: 3 Insufficient cpu.", nil, ""},
		{"evicted", deployment, unwell(`"phase":"Failed","reason":"Evicted","message":"The node was low on resource: memory."`),
			"Deployment shop/web: 1 of 2 pods not ready: failed (Evicted): The node was low on resource: memory.", nil, ""},
		{"a probe that fails", deployment, append(unwell(`"phase":"Running","conditions":[{"type":"Ready","status":"False"}],"containerStatuses":[{"name":"app","ready":false,"state":{"running":{"startedAt":"2026-03-14T11:58:00Z"}}}]`),
			eventsKey, items(eventOf("Pod", "web-b", "Warning", "Unhealthy", "Readiness probe failed: connection refused"))),
			"Deployment shop/web: 1 of 2 pods not ready: container app runs but is not ready", []string{"- a probe fails: Readiness probe failed: connection refused\n", "Events:\n60s", "Warning Unhealthy Pod/web-b"}, ""},
		{"an init container", deployment, unwell(`"phase":"Pending","initContainerStatuses":[{"name":"setup","state":{"terminated":{"exitCode":1,"reason":"Error"}}}],"containerStatuses":[{"name":"app","state":{"waiting":{"reason":"PodInitializing"}}}]`),
			"Deployment shop/web: 1 of 2 pods not ready: init container setup ended, exit 1", nil, ""},
		{"a volume", deployment, append(unwell(`"phase":"Pending","containerStatuses":[{"name":"app","state":{"waiting":{"reason":"ContainerCreating"}}}]`),
			eventsKey, items(eventOf("Pod", "web-b", "Warning", "FailedMount", `configmap "settings" not found`))),
			"Deployment shop/web: 1 of 2 pods not ready: not ready, phase Pending", []string{`- FailedMount of Pod/web-b: configmap "settings" not found`}, ""},
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
			"Deployment shop/web: 1 of 2 pods not ready: not ready, phase Running: its node has not said anything about its containers",
			[]string{"- node n1 is not ready (NodeStatusUnknown): Kubelet stopped posting node status."}, ""},
		{"a node that may not be read", deployment, append(unwell(`"phase":"Running","conditions":[{"type":"Ready","status":"False"}]`), "nodes", "denied"),
			"Deployment shop/web: 1 of 2 pods not ready: ", nil, "node n1 is"},
		{"pods that may not be read", deployment, []string{podsKey, "not JSON"}, "Deployment shop/web: 1 of 2 pods are ready; they could not be read themselves", nil, ""},
		{"well, as far as it can be told", deployment, []string{podsKey, "not JSON", deployKey, `{` + deployMeta + `,"status":{"observedGeneration":2,"readyReplicas":2}}`},
			"Deployment shop/web: nothing looks wrong with it, but its pods could not be read.", nil, ""},
		{"a Job", `{"kind":"job","namespace":"shop","name":"load"}`, []string{podsKey, items(), "get jobs.batch shop/load",
			`{"metadata":{"name":"load","uid":"j"},"spec":{"selector":{"matchLabels":{"a":"b"}}},"status":{"failed":3,"conditions":[{"type":"Failed","status":"True","reason":"BackoffLimitExceeded","message":"Job has reached the specified backoff limit"}]}}`},
			"Job shop/load: the Job has failed (BackoffLimitExceeded): Job has reached the specified backoff limit", []string{"active 0, succeeded 0, failed 3"}, ""},
		{"a Job that is done", `{"kind":"job","namespace":"shop","name":"load"}`, []string{podsKey, items(), "get jobs.batch shop/load",
			`{"metadata":{"name":"load","uid":"j"},"spec":{"selector":{"matchLabels":{"a":"b"}}},"status":{"succeeded":1,"conditions":[{"type":"Complete","status":"True"}]}}`},
			"Job shop/load is complete.", nil, ""},
		{"a pod on its way out", `{"kind":"pod","namespace":"shop","name":"web-1"}`, []string{"get pods shop/web-1",
			`{"metadata":{"name":"web-1","deletionTimestamp":"2026-03-14T12:00:20Z"},"status":{` + waiting("CrashLoopBackOff", "", "") + `}}`},
			"Pod shop/web-1 looks healthy: 1 of 1 pods are well.", []string{"Pod web-1: Pending, being deleted"}, "Last lines"},
		{"a pod", `{"kind":"pod","namespace":"shop","name":"web-1"}`, []string{"get pods shop/web-1", podOf("web-1", "", waiting("CrashLoopBackOff", "", ""))}, "Pod shop/web-1: 1 of 1 pods not ready: container app CrashLoopBackOff", nil, ""},
		{"a pod that does not go", `{"kind":"pod","namespace":"shop","name":"web-1"}`, []string{"get pods shop/web-1",
			`{"metadata":{"name":"web-1","deletionTimestamp":"2026-03-14T11:30:00Z","finalizers":["example.com/wait"]},"status":{"phase":"Running",` + ready + `}}`},
			"Pod shop/web-1: 1 of 1 pods not ready: is to be deleted since 30m and is still there: it waits for the finalizers example.com/wait", nil, ""},
		{"a StatefulSet", `{"kind":"statefulset","namespace":"shop","name":"db"}`, []string{podsKey, items(), "get statefulsets.apps shop/db", `{"metadata":{"name":"db","uid":"x"},"spec":{"replicas":1,"selector":{"matchLabels":{"a":"b"}}}}`},
			"StatefulSet shop/db: 1 of 1 pods not ready: there is no pod that its selector a=b takes", nil, ""},
		{"a DaemonSet without nodes", `{"kind":"daemonset","namespace":"shop","name":"agent"}`, []string{podsKey, items(), "get daemonsets.apps shop/agent", `{"metadata":{"name":"agent","uid":"x","generation":1},"spec":{"selector":{"matchLabels":{"a":"b"}}},"status":{"observedGeneration":1}}`},
			"DaemonSet shop/agent: no node fits the DaemonSet: see its nodeSelector, affinity and tolerations", nil, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			more := append([]string{deployKey, `{` + deployMeta + `,"status":{"observedGeneration":2,"readyReplicas":1}}`, setsKey, setOfWeb, eventsKey, items(), "get nodes n1", "{}"}, row.more...)
			text, err := answer(t, "diagnose_workload", row.args, more...)
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
			if len(text) > maxDiagnosis+200 {
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
	text, err := answer(t, "diagnose_workload", `{"kind":"deployment","namespace":"shop","name":"web"}`,
		deployKey, `{`+deployMeta+`}`, setsKey, setOfWeb, podsKey, items(list...), eventsKey, items(told...), "get pods/log shop/web-0", strings.Repeat("token "+token+"\n", 200))
	if err != nil || len(text) > maxDiagnosis+200 || strings.Contains(text, token[30:60]) {
		t.Errorf("%d bytes, %v", len(text), err)
	}
	says(t, text, "Deployment shop/web: 400 of 400 pods not ready: ", "- and 389 more\n", "bytes; to see less: ")
	long := waiting("CrashLoopBackOff", "", `,"lastState":{"terminated":{"exitCode":1}}`)
	text, err = answer(t, "diagnose_workload", `{"kind":"pod","namespace":"shop","name":"web-1"}`, "get pods shop/web-1", podOf("web-1", "", long),
		eventsKey, items(), "get pods/log shop/web-1", strings.Repeat("token "+token+"\n", 200))
	says(t, text, "its previous run:\n", "token ***\n")
	if err != nil || strings.Contains(text, token[30:60]) || len(text) > 4<<10 {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}
