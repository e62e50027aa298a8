// What sidecar/web/charts.js uses of Observable Plot; the bundle holds this and what it needs, of d3 too.
export {axisY, barX, dot, line, plot, rect, ruleX, ruleY, tickX} from "@observablehq/plot";
