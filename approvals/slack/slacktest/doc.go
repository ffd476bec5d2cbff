// Package slacktest is a double of Slack: a workspace in memory that speaks
// Slack's wire, so that an app cannot tell. It has the Web API over HTTP, Socket
// Mode over WebSocket and signed HTTP interactions, and the people: a test makes
// them click, submit and read.
//
// It rejects what Slack rejects, by Slack's limits and in Slack's words, and it
// has trouble on demand: answers that are lost, calls that hang, deliveries that
// come late, twice or forged. It does not import slack-go, lest both ends of the
// wire share one mistake.
//
// A [Server] may be used from several goroutines. What it returns is shared with
// it and is not to be changed.
package slacktest
