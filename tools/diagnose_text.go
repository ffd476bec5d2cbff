package tools

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"

	"countersign/action"
	"countersign/audit"
)

// readiness counts the pods that are ready, of those that there should be.
func (d *diagnosis) readiness() (ready, all int) {
	for _, p := range d.pods {
		if p.well() {
			ready++
		}
		if !p.leaving || d.resource == pods {
			all++
		}
	}
	return ready, max(all, int(d.workload.wants))
}

// findings is all that looks wrong, and what explains most first.
func (d *diagnosis) findings() []finding {
	w := d.workload
	ready, all := d.readiness()
	found := slices.Concat(d.podFindings(), w.findings, d.told, d.nodeFindings(), d.endedFindings(ready < all))
	refused := w.refused || slices.ContainsFunc(d.told, func(f finding) bool { return strings.HasPrefix(f.text, "FailedCreate") })
	if d.listed && len(d.pods) == 0 && w.wants > 0 && !refused {
		f := finding{rank: symptom, text: "there is no pod that its selector " + metav1.FormatLabelSelector(w.selector) + " takes"}
		if len(d.ended) > 0 {
			f.text = "there is no pod in place of those that are over"
		} else if d.selected > 0 {
			f.text = fmt.Sprintf("the %d pods that its selector takes belong to something else", d.selected)
		}
		found = append(found, f)
	}
	slices.SortStableFunc(found, func(a, b finding) int { return cmp.Compare(a.rank, b.rank) })
	if !d.listed && w.ready < w.wants {
		f := finding{text: fmt.Sprintf("%d of %d pods are ready; they could not be read themselves", w.ready, w.wants)}
		found = slices.Insert(found, 0, f)
	}
	switch {
	case len(found) > 0:
	case d.listed && ready < all && d.resource != pods && !w.done:
		found = append(found, finding{rank: symptom, text: "some are missing or being deleted, and nothing says why: its controller may be about to create them"})
	case w.unavailable != "":
		found = append(found, finding{rank: symptom, text: w.unavailable})
	}
	return found
}

func (d *diagnosis) text() string {
	var b strings.Builder
	name := fmt.Sprintf("%s %s/%s", d.resource.Kind, d.namespace, d.name)
	ready, all := d.readiness()
	found := d.findings()
	rest := found[min(1, len(found)):] // the first is the headline
	switch w := d.workload; {
	case w.meta.DeletionTimestamp != nil:
		fmt.Fprintf(&b, "%s is being deleted", name)
		if why := goes(w.meta, d.r.Now()); why != "" {
			b.WriteString(", " + why)
		}
		b.WriteString("\n")
		if rest = found; d.resource == pods {
			rest = nil // the same
		}
	case w.done: // whatever failed on the way
		fmt.Fprintf(&b, "%s is complete.\n", name)
		rest = found
	case len(found) == 0 && !d.listed && d.resource != pods:
		fmt.Fprintf(&b, "%s: nothing looks wrong with it, but its pods could not be read.\n", name)
	case len(found) == 0 && all == 0:
		fmt.Fprintf(&b, "%s: nothing looks wrong, and it has no pods.\n", name)
	case len(found) == 0:
		fmt.Fprintf(&b, "%s looks healthy: %d of %d pods are well.\n", name, ready, all)
	case found[0].rank == past:
		fmt.Fprintf(&b, "%s: %d of %d available; %s\n", name, ready, all, found[0])
	case found[0].rank == givenUp:
		fmt.Fprintf(&b, "%s: %s\n", name, found[0])
	case d.listed && ready < all && found[0].pods == all-ready:
		fmt.Fprintf(&b, "%s: %d of %d pods not ready: %s\n", name, all-ready, all, found[0])
	case d.listed && ready < all:
		fmt.Fprintf(&b, "%s: %d of %d pods not ready: %s\n", name, all-ready, all, found[0].line())
	default:
		fmt.Fprintf(&b, "%s: %s\n", name, found[0].line())
	}
	if len(rest) > 0 {
		b.WriteString("\nWhat else looks wrong:\n")
		for _, f := range rest[:min(len(rest), maxShownFindings)] {
			b.WriteString("- " + clip(f.line(), maxFinding) + "\n")
		}
		if n := len(rest) - maxShownFindings; n > 0 {
			fmt.Fprintf(&b, "- and %d more\n", n)
		}
	}
	d.chain(&b)
	log := ""
	if len(found) > 0 {
		log = d.log()
	}
	front := audit.MaskText(b.String())
	events := d.eventLines(len(found) > 0, front)
	room := maxDiagnosis - len(log)
	const note = 150 // bytes that a cut says of itself
	most := room - min(reservedForEvents, len(strings.Join(events, "")))
	if len(front) > most {
		front = cutAt(front, most-note, "describe_resource, list_events and get_pod_logs of one pod")
	}
	return front + log + eventSection(events, room-len(front))
}

// podFindings tells what is wrong with pods, the same of several once.
func (d *diagnosis) podFindings() []finding {
	at := map[string]int{}
	var found []finding
	for _, p := range d.pods {
		if p.wrong == nil {
			continue
		}
		f := *p.wrong
		// What is said of one pod and of the next often differs by its name alone.
		message := strings.ReplaceAll(f.message, p.name, "<pod>")
		if p.uid != "" {
			message = strings.ReplaceAll(message, p.uid, "<uid>")
		}
		key := strings.Join([]string{f.text, f.last, f.limit, message}, "\x00")
		i, seen := at[key]
		if !seen {
			i = len(found)
			at[key] = i
			found = append(found, f)
		} else {
			found[i].message = message
		}
		found[i].pods++
		found[i].restarts = max(found[i].restarts, f.restarts)
	}
	return found
}

// endedFindings tells of pods that are over: part of the trouble where there are
// too few others, and else only to be known.
func (d *diagnosis) endedFindings(missing bool) []finding {
	var reasons []string
	count, message := map[string]int{}, map[string]string{}
	for _, p := range d.ended {
		if p.wrong == nil {
			continue
		}
		reason := cmp.Or(p.reason, "Failed")
		if count[reason]++; count[reason] == 1 {
			reasons = append(reasons, reason)
			if message[reason] = p.wrong.message; p.reason == "" {
				message[reason] = p.wrong.String()
			}
		}
	}
	found := make([]finding, len(reasons))
	for i, reason := range reasons {
		f := finding{rank: past, text: fmt.Sprintf("%d earlier pods %s", count[reason], reason), message: message[reason]}
		if count[reason] == 1 {
			f.text = "1 earlier pod " + reason
		}
		if missing {
			f.rank = symptom
		}
		found[i] = f
	}
	return found
}

// nodeFindings looks at the nodes of the first pods that are not well, where
// the caller may: that a node is not ready explains much.
func (d *diagnosis) nodeFindings() []finding {
	var found []finding
	var asked []string
	for _, p := range d.pods {
		if p.wrong == nil || p.node == "" || slices.Contains(asked, p.node) || len(asked) == maxEventObjects {
			continue
		}
		asked = append(asked, p.node)
		get := action.Action{Cluster: d.cluster, Verb: action.Get, Resource: nodesV1, Name: p.node}
		if d.r.Verdict("diagnose_workload", get).Effect != "allow" {
			continue
		}
		var node corev1.Node
		response, err := d.r.Read(d.ctx, get)
		if err != nil {
			found = append(found, finding{rank: symptom, text: "node " + p.node + " of pod " + p.name + " could not be read: it may be gone"})
			continue
		}
		if kjson.UnmarshalCaseSensitivePreserveInts(response.Body, &node) != nil {
			continue
		}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
				found = append(found, finding{rank: hint, text: fmt.Sprintf("node %s is not ready (%s): %s", p.node, c.Reason, oneLine(c.Message))})
			}
		}
	}
	return found
}

// chain shows what belongs to what, from the workload to the containers of the
// first pods that are not well.
func (d *diagnosis) chain(b *strings.Builder) {
	b.WriteString("\n")
	indent := ""
	if d.resource != pods {
		fmt.Fprintf(b, "%s %s: %s\n", d.resource.Kind, d.name, d.workload.state)
		indent = "  "
	}
	var told []string // images
	for _, set := range d.sets {
		var images []string
		for _, c := range set.Spec.Template.Spec.Containers {
			images = append(images, c.Image)
		}
		told = append(told, images...)
		fmt.Fprintf(b, "  ReplicaSet %s (revision %s): wants %d, ready %d, images %s\n", set.Name, set.Annotations["deployment.kubernetes.io/revision"],
			wanted(set.Spec.Replicas), set.Status.ReadyReplicas, clip(strings.Join(images, ", "), maxCell))
	}
	for i, p := range d.pods[:min(len(d.pods), maxShownPods)] {
		b.WriteString(indent + p.line + "\n")
		if d.resource != pods && (p.wrong == nil || i >= maxDetailedPods) {
			continue
		}
		for i, c := range p.containers {
			if i == maxShownPods {
				fmt.Fprintf(b, "%s  and %d more containers\n", indent, len(p.containers)-i)
				break
			}
			b.WriteString(indent + "  " + c.line)
			if c.image != "" && !slices.Contains(told, c.image) {
				b.WriteString(", image " + clip(c.image, 100))
			}
			b.WriteString("\n")
		}
	}
	if n := len(d.pods) - maxShownPods; n > 0 {
		fmt.Fprintf(b, "%sand %d more pods: see list_resources\n", indent, n)
	}
	if d.more {
		fmt.Fprintf(b, "%sonly the first %d pods were looked at\n", indent, maxDiagnosedPods)
	}
}

// eventLines are a line for each event. What stands above is not said again.
func (d *diagnosis) eventLines(all bool, above string) []string {
	var lines []string
	for _, e := range d.events {
		if !all && e.kind != corev1.EventTypeWarning {
			continue
		}
		message := clip(e.message, maxMessage)
		if len(message) > len("as above") && strings.Contains(above, message) {
			message = "as above"
		}
		lines = append(lines, fmt.Sprintf("%s  %s %s %s: %s\n", e.seen(d.r.Now()), e.kind, e.reason, e.object, message))
	}
	return lines
}

// eventSection is as many of the events as there is room for.
func eventSection(lines []string, room int) string {
	const head, more = "\nEvents:\n", "and %d more: see list_events\n"
	room -= len(head) + len(more) + 10 // digits of the number
	shown := ""
	for i, line := range lines {
		if i == maxShownEvents || len(shown)+len(line) > room {
			shown += fmt.Sprintf(more, len(lines)-i)
			break
		}
		shown += line
	}
	if shown == "" {
		return ""
	}
	return head + shown
}

// log shows the end of the log of the first container that fails: of the run
// that has ended, when it waits for the next.
func (d *diagnosis) log() string {
	i := slices.IndexFunc(d.pods, func(p podState) bool { return p.failing != "" })
	if i < 0 {
		return ""
	}
	p := d.pods[i]
	a := logAction(d.cluster, d.namespace, p.name)
	a.Options = action.Options{Container: p.failing, Previous: p.previous, TailLines: maxDiagnosedLines, TailBytes: maxDiagnosedLog + margin}
	response, err := d.r.Read(d.ctx, a)
	if err != nil || len(response.Body) == 0 {
		return "" // a container that never ran has none
	}
	run := ""
	if p.previous {
		run = ", its previous run"
	}
	head := fmt.Sprintf("\nLast lines of the log of container %s of pod %s%s:\n", p.failing, p.name, run)
	if looksBinary(response.Body) {
		return head + binaryLog(response) + "\n"
	}
	lines, _ := logLines(response)
	return head + strings.TrimSuffix(lastBytes(lines, maxDiagnosedLog), "\n") + "\n"
}
